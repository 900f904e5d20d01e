"""Each token has the weight of the region it lies in, by character offsets."""

import re

import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.training import examples

WEIGHTS = examples.RegionWeights(
    begin=0.5, prefix=1.0, end=0.25, continuation=2.0, turn_end=4.0
)
MARKERS = examples.Markers('<B>', '<E>')


class Words:
  """A token is a marker, a word with the space before it, or stops and ends.

  Like a byte-level BPE it joins a full stop with the line breaks behind it.
  """

  pattern = re.compile(r'<[^>]*>| ?\w+|[.?!]+\n*|\s+|.')

  def encode_with_offsets(self, text):
    spans = [m.span() for m in self.pattern.finditer(text)]
    return [hash(text[a:b]) % 1000 for a, b in spans], spans

  def encode(self, text):
    return self.encode_with_offsets(text)[0]


def cut(text):
  return re.findall(r'[^.]+\.', text)


def build(output, prompt='<user>two plus two<reply>', **changes):
  answer = examples.regions(
      output,
      markers=MARKERS,
      turn_end='<end>',
      weights=WEIGHTS,
      pieces=cut,
      **changes,
  )
  words = Words()
  made = examples.build('q1', prompt, answer, words)
  text = prompt + output + '<end>'
  tokens, spans = words.encode_with_offsets(text)
  assert made.tokens.tolist() == tokens
  names = [text[a:b] for a, b in spans]
  return list(zip(names, made.weights.tolist(), strict=True))


def test_regions():
  got = build('<B>Add them. Carry.<E> So four.')
  assert got == [
      ('<user>', 0),
      ('two', 0),
      (' plus', 0),
      (' two', 0),
      ('<reply>', 0),
      ('<B>', 0.5),
      ('Add', 1),
      (' them', 1),
      ('.', 1),
      (' Carry', 1),
      ('.', 1),
      ('<E>', 0.25),
      (' So', 2),
      (' four', 2),
      ('.', 2),
      ('<end>', 4),
  ]


def test_a_masked_sentence_keeps_its_tokens():
  got = dict(build('<B>Add them. Carry.<E> So four.', masked={0}))
  assert got['Add'] == got[' them'] == 0
  assert got[' Carry'] == 1


def test_a_stop_belongs_to_its_sentence_with_the_breaks_behind_it():
  # The break is text of the second sentence, the token ends the first.
  got = build('<B>Add.\n\nCarry.<E>', masked={1})
  assert ('.\n\n', 1) in got
  assert ('Carry', 0) in got
  got = build('<B>Add.\n\nCarry.<E>', masked={0})
  assert ('.\n\n', 0) in got
  assert ('Carry', 1) in got


def test_without_markers_all_is_continuation():
  got = build('Four it is.')
  assert [w for _, w in got] == [0] * 5 + [2, 2, 2, 2, 4]


def test_types():
  made = examples.build(
      'q', 'a', [examples.Region('continuation', ' b', 1.0)], Words()
  )
  assert made.tokens.dtype == np.int32
  assert made.weights.dtype == np.float32


def test_begin_without_end():
  with pytest.raises(errors.DataError, match="has '<B>' without '<E>'"):
    build('<B>Add them.')


def test_a_prompt_that_melts_into_its_answer():
  with pytest.raises(errors.DataError, match="q1: .* before its answer 'teen"):
    build('teen', prompt='<user>four')
