"""A completion ends at the first stop token, loop or limit, and says which."""

import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.sampling import loops, rows as rows_lib
from palign_jax.text import tokenizer as tokenizer_lib

RULE = loops.LoopRule(max_period=2, min_repeats=3, min_span=4)


@pytest.mark.parametrize('chunk', [1, 2, 100])
@pytest.mark.parametrize(
    'drawn, tokens, reason',
    [
        ([3, 4, 7, 5, 5], (3, 4), 'stop'),
        ([9], (), 'stop'),
        ([1, 2, 3, 4, 5, 6, 1, 2], (1, 2, 3, 4, 5, 6), 'length'),
        ([1, 2, 3, 4, 5, 7], (1, 2, 3, 4, 5), 'stop'),  # The last one allowed.
        ([1, 5, 5, 5, 5, 7], (1, 5, 5, 5, 5), 'loop'),
        ([5, 5, 5, 7, 5], (5, 5, 5), 'stop'),
        ([1, 2, 1, 2, 1, 2], (1, 2, 1, 2, 1, 2), 'loop'),  # At the limit.
        ([1, 2], (1, 2), None),
    ],
)
def test_ends(drawn, tokens, reason, chunk):
  request = rows_lib.Request('r', (1,), np.zeros(2, np.uint32), 6)
  row = rows_lib.Row(request, rows_lib.Ends(frozenset([7, 9]), RULE))
  for begin in range(0, len(drawn), chunk):
    if row.left:
      row.take(np.array(drawn[begin : begin + chunk], np.int32))
  assert (tuple(row.tokens), row.finish_reason) == (tokens, reason)
  assert row.left == (0 if reason else 6 - len(tokens))
  if reason:
    assert row.completion() == rows_lib.Completion('r', tokens, reason)


def test_counts_what_was_asked_for():
  request = rows_lib.Request('r', (1,), np.zeros(2, np.uint32), 6)
  row = rows_lib.Row(request, rows_lib.Ends(frozenset([7])))
  assert row.take(np.array([1, 2])) == 2
  assert row.take(np.array([3, 7, 4, 4])) == 2  # The stop token among them.
  row = rows_lib.Row(request, rows_lib.Ends(frozenset([7])))
  assert row.take(np.array([1] * 9)) == 6


def test_a_token_that_could_not_be_drawn():
  request = rows_lib.Request('r', (1,), np.zeros(2, np.uint32), 6)
  make = lambda: rows_lib.Row(request, rows_lib.Ends(frozenset([7])))
  row = make()
  row.take(np.array([1, 2]))
  with pytest.raises(
      errors.DataError,
      match='^request r: the logits of token 4 .*config.student.dtype, .* its'
      ' weights are whole.$',
  ):
    row.take(np.array([3, -1, 7]))
  # Nobody asked for what is after the end.
  assert make().take(np.array([3, 7, -1])) == 2
  assert make().take(np.array([1] * 6 + [-1])) == 6


PIECES = [b'a', b'b', b'END', b'E', b'N', b'D', b'\xc3', b'\xa9', b'xEN']


class Pieces(tokenizer_lib.Tokenizer):
  """Its tokens 6 and 7 are one character together."""

  def __init__(self):
    pass

  def decode(self, ids):
    data = b''.join(PIECES[i] for i in ids)
    return data.decode('utf-8', 'replace')


@pytest.mark.parametrize('chunk', [1, 2, 100])
@pytest.mark.parametrize(
    'drawn, tokens, text',
    [
        ([0, 1, 2, 0], (0, 1), 'ab'),
        ([0, 3, 4, 5, 0], (0,), 'a'),
        ([0, 8, 5, 1], (0,), 'ax'),  # It begins within a token.
        ([2, 0], (), ''),
        ([0, 6, 7, 2], (0, 6, 7), 'a\u00e9'),
        ([0, 3, 4, 1, 0, 1], (0, 3, 4, 1, 0, 1), 'aENbab'),
        ([0, 1, 0, 1, 0, 6], (0, 1, 0, 1, 0, 6), 'ababa\ufffd'),
    ],
)
def test_ends_before_a_stop_string(drawn, tokens, text, chunk):
  request = rows_lib.Request('r', (1,), np.zeros(2, np.uint32), 6)
  ends = rows_lib.Ends(frozenset(), None, ('END', 'ZZ'), Pieces())
  row, used = rows_lib.Row(request, ends), 0
  for begin in range(0, len(drawn), chunk):
    if row.left:
      used += row.take(np.array(drawn[begin : begin + chunk], np.int32))
      assert text.startswith(row.text())  # Nothing is taken back.
  reason = 'length' if len(tokens) == 6 else 'stop'
  want = rows_lib.Completion('r', tokens, reason, text)
  assert row.completion() == want
  assert used == (6 if reason == 'length' else _until(drawn))


def _until(drawn):
  """Returns how many tokens there are when the string is first there."""
  texts = [Pieces().decode(drawn[:i]) for i in range(len(drawn) + 1)]
  return next(i for i, text in enumerate(texts) if 'END' in text)


def test_stop_strings_that_cannot_be():
  with pytest.raises(errors.ConfigError, match='an empty one stops at once'):
    rows_lib.Ends(frozenset(), None, ('',), Pieces())
  with pytest.raises(errors.ConfigError, match='they need a tokenizer'):
    rows_lib.Ends(frozenset(), None, ('END',))


def test_only_the_beginning_of_a_stop_string_is_held_back():
  request = rows_lib.Request('r', (1,), np.zeros(2, np.uint32), 9)
  ends = rows_lib.Ends(frozenset(), None, ('END', 'b'), Pieces())
  row, texts = rows_lib.Row(request, ends), []
  for token in [0, 3, 4, 3, 0, 1]:
    row.take(np.array([token], np.int32))
    texts.append(row.text())
  assert texts == ['a', 'a', 'a', 'aEN', 'aENEa', 'aENEa']
  assert row.completion().text == 'aENEa'
