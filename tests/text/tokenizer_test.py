"""Ids, offsets and files are those of the folder, with nothing added."""

from hypothesis import given, settings, strategies as st
import pytest
import tokenizers
from tokenizers import processors

from palign_jax.core import errors
from palign_jax.text import tokenizer
from tests import fakes


@pytest.fixture(scope='module')
def tok(tmp_path_factory):
  return tokenizer.load(fakes.tokenizer_folder(tmp_path_factory.mktemp('tok')))


@settings(deadline=None)
@given(text=st.text())
def test_round_trip(tok, text):
  ids, offsets = tok.encode_with_offsets(text)
  assert ids == tok.encode(text)
  assert tok.decode(ids) == text
  # Offsets leave no character out, spaces neither, and never go back.
  assert [i for i, _ in offsets] == sorted(i for i, _ in offsets)
  covered = {i for start, end in offsets for i in range(start, end)}
  assert covered == set(range(len(text)))


def test_offsets_by_hand(tok):
  text = 'is 19<|im_end|>é'
  ids, offsets = tok.encode_with_offsets(text)
  assert [text[a:b] for a, b in offsets] == (
      ['is', ' ', '1', '9', '<|im_end|>', 'é', 'é']
  )
  assert ids[4] == 2


def test_specials_are_recognised_and_skipped_by_flag(tok):
  ids = tok.encode('<|im_start|>is<|im_end|>')
  assert (ids[0], ids[-1]) == (1, 2)
  assert tok.decode(ids) == 'is'
  kept = tok.decode(ids, skip_specials=False)
  assert kept == '<|im_start|>is<|im_end|>'
  assert tok.specials == {'<|endoftext|>', '<|im_start|>', '<|im_end|>'}


def test_sizes(tok):
  assert (tok.size, tok.eos_ids) == (320, (2,))


def test_nothing_is_added_trimmed_or_cut(tmp_path):
  # What Llama's tokenizer.json asks for: a first token, offsets without space.
  path = fakes.tokenizer_folder(tmp_path, settings={'add_bos_token': True})
  rust = tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json'))
  bos = ('<|endoftext|>', 0)
  rust.post_processor = processors.Sequence(
      [
          processors.ByteLevel(trim_offsets=True),
          processors.TemplateProcessing(
              single=f'{bos[0]} $A', special_tokens=[bos]
          ),
      ]
  )
  rust.enable_truncation(3)
  rust.enable_padding(length=9)
  rust.save(str(path / 'tokenizer.json'))
  tok = tokenizer.load(path)
  ids, offsets = tok.encode_with_offsets('It is 19, it is.')
  assert tok.decode(ids, skip_specials=False) == 'It is 19, it is.'
  assert ''.join('It is 19, it is.'[a:b] for a, b in offsets) == (
      'It is 19, it is.'
  )


def test_eos_ids_are_the_tokenizers_and_the_chats(tmp_path):
  path = fakes.tokenizer_folder(
      tmp_path / 'base', settings={'eos_token': '<|endoftext|>'}
  )
  assert tokenizer.load(path).eos_ids == (0, 2)
  path = fakes.tokenizer_folder(tmp_path / 'bare', template=None)
  assert tokenizer.load(path).eos_ids == (2,)
  path = fakes.tokenizer_folder(
      tmp_path / 'none', template=None, settings={'eos_token': None}
  )
  with pytest.raises(errors.CheckpointError, match='names no eos_token'):
    _ = tokenizer.load(path).eos_ids


@settings(deadline=None)
@given(ids=st.lists(st.integers(0, 319), max_size=30), text=st.text())
def test_streaming_gives_the_whole_text(tok, ids, text):
  for sequence in (ids, tok.encode(text)):
    streamer = tokenizer.Streamer(tok)
    pushed = [streamer.push(i) for i in sequence]
    rest = streamer.finish()
    assert ''.join(pushed) + rest == tok.decode(sequence)


def test_streaming_waits_for_whole_characters(tok):
  streamer = tokenizer.Streamer(tok)
  ids = tok.encode('a🙂b')
  assert [streamer.push(i) for i in ids] == ['a', '', '', '', '🙂', 'b']
  assert streamer.push(ids[1]) == ''
  assert streamer.finish() == '\ufffd'


def test_several_chat_templates(tmp_path):
  named = [{'name': n, 'template': fakes.CHATML} for n in ('tool_use', 'rag')]
  settings = {'chat_template': named}
  tok = tokenizer.load(fakes.tokenizer_folder(tmp_path, settings=settings))
  match = r"chat templates \['rag', 'tool_use'\], none named default"
  with pytest.raises(errors.CheckpointError, match=match):
    tok.chat.prompt('A')
  named[0]['name'] = 'default'
  tok = tokenizer.load(fakes.tokenizer_folder(tmp_path, settings=settings))
  assert tok.chat.turn_end == '<|im_end|>'


def test_folders_that_will_not_do(tmp_path):
  with pytest.raises(errors.CheckpointError, match='missing: no such folder'):
    tokenizer.load(tmp_path / 'missing')
  with pytest.raises(
      errors.CheckpointError,
      match=r'no tokenizer there \(none of tokenizer.json, .*\); copy',
  ):
    tokenizer.load(tmp_path)
  (tmp_path / 'tokenizer.json').write_text('{"version": \n')
  with pytest.raises(
      errors.CheckpointError, match='tokenizer.json cannot be read as'
  ) as caught:
    tokenizer.load(tmp_path)
  assert '\n' not in str(caught.value)
