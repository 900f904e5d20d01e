"""Trunk and tail are, id by id, the prompt written alone."""

import json
import pathlib

from hypothesis import example, given, HealthCheck, settings, strategies as st
import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

import palign_jax
from palign_jax.core import errors
from palign_jax.judging import trunk as trunk_lib
from palign_jax.text import prompts, sentences, tokenizer as tokenizer_lib
from tests import fakes

ASSETS = pathlib.Path(palign_jax.__file__).parent / 'sandbox/assets'
TRIMS = fakes.CHATML.replace("m['content']", "m['content'] | trim")
# Stranger than any in use: what is written depends on the prefix.
WILFUL = (
    "{% for m in messages %}{{ '<|im_start|>' }}"
    "{% if 'wait' in m['content'] %}{{ m['content'] | upper }}"
    "{% else %}{{ m['content'] | trim }}{% endif %}{% endfor %}"
)
_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_SPLIT = pre_tokenizers.Split(tokenizers.Regex(_REGEX), 'isolated')
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_CHARACTERS = pre_tokenizers.Split(tokenizers.Regex(r'[\s\S]'), 'isolated')
_NFC = normalizers.NFC()
# Other work on the machine makes no test fail.
SETTINGS = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
_QUESTION = 'Is {prefix} 7? <|im_end|> [ENOUGH]'
TEXTS = (
    'Wait, 12 plus 7 is 19. Yes, it is. So the answer is \\boxed{19}.\n\n',
    "We don't know that they'll need 12345 = 3x + 5. (It isn't so.)   No!\n",
    '因此 x=3，所以答案是 19。再检查一下。 ééé a\u0301\u0323b 🙂🙂',
)


def _train(tokenizer, trainer=trainers.BpeTrainer, **settings):
  tokenizer.train_from_iterator(
      TEXTS * 3,
      trainer(
          special_tokens=['<unk>', '<|im_start|>', '<|im_end|>'],
          show_progress=False,
          **settings,
      ),
  )
  return tokenizer


def _bytes(*pre, normalizer=None):
  """Byte-level BPE, as most tokenizers of today."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(pre))
  if normalizer:
    tokenizer.normalizer = normalizer
  return _train(
      tokenizer,
      vocab_size=420,
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )


def _digits_and_scripts():
  return _bytes(
      pre_tokenizers.Split(tokenizers.Regex(r'\p{N}{1,3}'), 'isolated'),
      pre_tokenizers.Split(tokenizers.Regex('[一-龥]+'), 'isolated'),
      _SPLIT,
      _BYTES,
  )


def _metaspace(*, split):
  """SentencePiece's way: if not split, a whole text is one word."""
  tokenizer = tokenizers.Tokenizer(models.BPE(unk_token='<unk>'))
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
      prepend_scheme='first', split=split
  )
  return _train(tokenizer, vocab_size=200)


def _unigram():
  tokenizer = tokenizers.Tokenizer(models.Unigram())
  tokenizer.normalizer = normalizers.NFKC()
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  return _train(
      tokenizer, trainers.UnigramTrainer, vocab_size=120, unk_token='<unk>'
  )


def _greedy_added():
  """Added tokens that take spaces, ignore case, or end in the template."""
  tokenizer = _bytes(_SPLIT, _BYTES, normalizer=normalizers.Lowercase())
  token = tokenizers.AddedToken
  tokenizer.add_tokens(
      [
          token('<mask>', lstrip=True, normalized=False),
          token('<sep>', rstrip=True, normalized=False),
          token('it', single_word=True, normalized=False),
          token('The Answer', normalized=True),
          token('it is. So<|im', normalized=False),
          token('yes.\n<|im_end|>', normalized=False),
      ]
  )
  return tokenizer


def _prefix_space():
  return _bytes(pre_tokenizers.ByteLevel(add_prefix_space=True))


MAKERS = {
    'nfc': lambda: _bytes(_SPLIT, _BYTES, normalizer=_NFC),
    'characters': lambda: _bytes(_CHARACTERS, _BYTES, normalizer=_NFC),
    'nfkd': lambda: _bytes(_SPLIT, _BYTES, normalizer=normalizers.NFKD()),
    'several splits': _digits_and_scripts,
    'prefix space': _prefix_space,
    'words of metaspace': lambda: _metaspace(split=True),
    'one word': lambda: _metaspace(split=False),
    'unigram': _unigram,
    'greedy added tokens': _greedy_added,
}
TEMPLATES = {'chatml': fakes.CHATML, 'trims': TRIMS, 'wilful': WILFUL}


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  """Gives a tokenizer by name and template, each made once."""
  made = {}

  def of(name, template='chatml'):
    if (name, template) not in made:
      folder = tmp_path_factory.mktemp('tok')
      MAKERS[name]().save(str(folder / 'tokenizer.json'))
      settings = {'chat_template': TEMPLATES[template], 'eos_token': '.'}
      (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
      made[name, template] = tokenizer_lib.load(folder)
    return made[name, template]

  return of


@pytest.fixture(scope='module')
def sandbox():
  return tokenizer_lib.load(ASSETS / 'student')


def check(tok, prompt, question, trace, ends, shared=()):
  """Compares every tail with the prompt written alone."""
  trunk = trunk_lib.Trunk(tok, prompt, question, trace, ends, shared)
  assert trunk.num_cuts == len(ends)
  assert trunk.tokens.dtype == np.int32
  tails = trunk.tails(range(len(ends) + 1))
  for end, tail in zip([0, *ends], tails, strict=True):
    user = prompts.judge(prompt, question, trace[:end])
    alone = tok.encode(tok.chat.prompt(user)) + list(shared)
    assert trunk.tokens[: tail.anchor].tolist() + [*tail.tokens] == alone, end
    assert tail.tokens
  return trunk, tails


CHUNKS = st.sampled_from(
    [
        *('a', 'the', 'Wait,', ' so', ' x', "'ll", "n't", 'ab cd', 'It is.'),
        *('7', '123', '12345678', '.', '. ', '! ', '?', ')', '$x^2$', '{', '}'),
        *(' ', '  ', '\n', '\n\n', '\r\n', '\t', '\xa0', '\u3000', '\u2028'),
        *('é', 'e', '\u0301', '\u0323', '\u0327', '\u0338', 'ﬁ', '½', 'İ'),
        *(
            '因此',
            '。',
            '，',
            '가',
            '\u1100',
            '\u1161',
            '\u11a8',
            '🙂',
            '👩‍💻',
        ),
        *('<|im_end|>', '<|im_start|>', '<|im', '_end|>', '<', '<|', '|>'),
        *('<mask>', '<sep>', 'it', 'the answer', 'The Answer', 'yes.\n<|im_'),
        *('[ENOUGH]', '{prefix}', '{question}', 'Qx7prefix7xQ', 'wait', '\0'),
        *('it is. So', '<|im_end|', 'I', '\u0130', '\u212b', '\ufb01', '=3'),
    ]
)
TRACES = st.lists(
    st.one_of(CHUNKS, st.text(max_size=4)), min_size=1, max_size=40
).map(''.join)


@st.composite
def cut_traces(draw):
  trace = draw(TRACES.filter(bool))
  ends = draw(st.sets(st.integers(1, len(trace)), max_size=12))
  return trace, sorted(ends)


@pytest.mark.parametrize('template', TEMPLATES)
@pytest.mark.parametrize('name', MAKERS)
@settings(SETTINGS, max_examples=20)
@given(cut=cut_traces(), prompt=st.sampled_from(sorted(prompts.JUDGE)))
@example(cut=(TEXTS[0], [22, 34, 61]), prompt='code')
@example(cut=('a\u0301\u0323b ' * 9, list(range(1, 36))), prompt='paper')
@example(cut=('so a b it is. So no<|im_end', [16, 27]), prompt='paper')
@example(cut=('a q\u0301\u0323 b, c\u0301\u0323', [3, 8, 10]), prompt='paper')
@example(cut=('a b yes', [7]), prompt='paper')
@example(cut=('wait ' * 9, [4, 5, 14, 44]), prompt='paper')
def test_equals_the_prompt_alone(load, name, template, cut, prompt):
  check(load(name, template), prompt, _QUESTION, *cut, shared=(5, 3))


@settings(SETTINGS, max_examples=50)
@given(
    cut=cut_traces(),
    question=TRACES,
    prompt=st.sampled_from(sorted(prompts.JUDGE)),
)
def test_the_sandbox(sandbox, cut, question, prompt):
  check(sandbox, prompt, question, *cut)


@pytest.mark.parametrize('prompt', prompts.JUDGE)
@pytest.mark.parametrize('name', MAKERS)
def test_a_long_trace(load, name, prompt):
  trace = ''.join(TEXTS * 5)
  ends = sentences.cuts(trace, 'sentence')
  trunk, tails = check(load(name), prompt, _QUESTION, trace, ends)
  # Tails are short: what is shared is in the trunk.
  assert max(len(tail.tokens) for tail in tails[1:]) < 60
  assert tails[7] == trunk.tail(7)
  assert trunk.tails([9, 2, 2]) == [tails[9], tails[2], tails[2]]
  assert trunk.tails([]) == []


class Counting:
  """Counts the characters that are encoded."""

  def __init__(self, tokenizer, monkeypatch):
    self.num_texts = self.num_chars = 0
    inner = tokenizer.encode_many

    def encode_many(texts):
      self.num_texts += len(texts)
      self.num_chars += sum(map(len, texts))
      return inner(texts)

    monkeypatch.setattr(tokenizer, 'encode_many', encode_many)


def test_a_tail_is_encoded_from_near_its_cut(load, monkeypatch):
  tok = load('nfc')
  trace = ''.join(TEXTS * 50)
  ends = sentences.cuts(trace, 'sentence')
  trunk = trunk_lib.Trunk(tok, 'code', _QUESTION, trace, ends)
  count = Counting(tok, monkeypatch)
  trunk.tails(range(1, len(ends) + 1))
  assert count.num_texts < 1.1 * len(ends)
  assert count.num_chars < 80 * len(ends)


def test_rendered_few_times(load, monkeypatch):
  tok = load('nfc')
  calls, inner = [], tok.render

  def render(messages, *, generate):
    calls.append(messages)
    return inner(messages, generate=generate)

  monkeypatch.setattr(tok, 'render', render)
  trace = ''.join(TEXTS * 5)
  ends = sentences.cuts(trace, 'sentence')
  trunk_lib.Trunk(tok, 'code', 'Why?', trace, ends).tails(
      range(1, len(ends) + 1)
  )
  assert len(calls) == 4


def test_no_cuts(load):
  trunk, (tail,) = check(load('nfc'), 'code', 'Why?', ' \n', [])
  assert tail == trunk.tail(0)


def test_a_prompt_that_is_the_trunk_keeps_a_token(tmp_path):
  MAKERS['nfc']().save(str(tmp_path / 'tokenizer.json'))
  path = tmp_path / 'tokenizer_config.json'
  bare = "{{ messages[0]['content'] }}"
  path.write_text(json.dumps({'chat_template': bare, 'eos_token': '.'}))
  tok = tokenizer_lib.load(tmp_path)
  trunk, tails = check(tok, 'brief', 'Why?', 'So. It is.', [3, 10])
  assert tails[-1] == trunk_lib.Tail(
      len(trunk.tokens) - 1, (int(trunk.tokens[-1]),)
  )
  _, tails = check(tok, 'brief', 'Why?', 'So. It is.', [3, 10], shared=[4])
  assert tails[-1] == trunk_lib.Tail(len(trunk.tokens), (4,))


@pytest.mark.parametrize('ends', [[0], [3, 3], [3, 2], [-1, 3], [4, 11]])
def test_cuts_must_increase(load, ends):
  with pytest.raises(errors.DataError, match='must increase and stay'):
    trunk_lib.Trunk(load('nfc'), 'code', 'Why?', 'So. It is.', ends)


def test_other_mistakes(load):
  with pytest.raises(errors.ConfigError, match='no such prompt'):
    trunk_lib.Trunk(load('nfc'), 'new', 'Why?', 'So. It is.', [3])
  trunk = trunk_lib.Trunk(load('nfc'), 'code', 'Why?', 'So. It is.', [3])
  for length in (-1, 2):
    with pytest.raises(IndexError, match='of 1 sentences'):
      trunk.tail(length)
