"""Any text comes back whole, digits stand alone, and builds are identical."""

import subprocess
import sys

from hypothesis import given, settings, strategies as st
import pytest
import tokenizers
import transformers

from palign_jax.sandbox import corpus, tokenizer

PROMPTS = (
    'Please reason step by step, and put your final answer within \\boxed{}.',
    '<Begin_of_Prefix> <End_of_Prefix> [ENOUGH] [NOT_ENOUGH]',
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  tokenizer.build(folder, PROMPTS)
  return folder


@pytest.fixture(scope='module')
def loaded(folder):
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope='module')
def raw(folder):
  return tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=['Cs'])))
def test_any_text_comes_back(raw, text):
  ids = raw.encode(text, add_special_tokens=False).ids
  assert raw.decode(ids, skip_special_tokens=False) == text


def test_digits_stand_alone(raw):
  assert raw.encode('12 345').tokens == ['1', '2', 'Ġ3', '4', '5']
  for token in raw.get_vocab():
    assert sum(c.isdigit() for c in token) <= 1


def test_the_words_of_the_world_are_one_token_each(raw):
  assert raw.encode('So 19 - 4 = 15. The answer is \\boxed{15}.').tokens == [
      'So', 'Ġ1', '9', 'Ġ-', 'Ġ4', 'Ġ=', 'Ġ1', '5', '.',
      'ĠThe', 'Ġanswer', 'Ġis', 'Ġ\\boxed{', '1', '5', '}.',
  ]  # fmt: skip


def test_every_length_of_story_fits_its_bound(raw):
  for steps in range(2, 9):
    rows = corpus.Corpus(
        corpus.CorpusConfig(kinds={'chain': 1}, steps={steps: 1}, seed=4)
    )
    texts = [rows[i]['reply'] for i in range(100)]
    assert max(len(raw.encode(t).ids) for t in texts) <= 170 + 20 * steps
    assert max(len(raw.encode(t).ids) for t in texts) <= 330


def test_the_folder_loads_with_its_template_and_special_tokens(loaded):
  assert loaded.convert_tokens_to_ids(list(tokenizer.SPECIALS)) == [0, 1, 2]
  assert (loaded.eos_token, loaded.pad_token) == ('<|im_end|>', '<|endoftext|>')
  assert len(loaded) <= tokenizer.VOCAB_SIZE
  messages = [{'role': 'user', 'content': 'Mia has 12 pens.'}]
  assert loaded.apply_chat_template(
      messages, tokenize=False, add_generation_prompt=True
  ) == ('<|im_start|>user\nMia has 12 pens.<|im_end|>\n<|im_start|>assistant\n')


def test_a_build_in_another_process_gives_the_same_bytes(folder, tmp_path):
  command = (
      'from palign_jax.sandbox import tokenizer;'
      f'tokenizer.build({str(tmp_path)!r}, {PROMPTS!r})'
  )
  subprocess.run([sys.executable, '-c', command], check=True)
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
