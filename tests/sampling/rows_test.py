"""A completion ends at the first stop token, loop or limit, and says which."""

import numpy as np
import pytest

from palign_jax.sampling import loops, rows as rows_lib

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
  row = rows_lib.Row(request, frozenset([7, 9]), RULE)
  for begin in range(0, len(drawn), chunk):
    if row.left:
      row.take(np.array(drawn[begin : begin + chunk], np.int32))
  assert (tuple(row.tokens), row.finish_reason) == (tokens, reason)
  assert row.left == (0 if reason else 6 - len(tokens))
  if reason:
    assert row.completion() == rows_lib.Completion('r', tokens, reason)


def test_begins_in_its_bucket():
  request = rows_lib.Request('r', (1,) * 33, np.zeros(2, np.uint32), 6)
  assert rows_lib.Row(request, frozenset(), None).start == 64
