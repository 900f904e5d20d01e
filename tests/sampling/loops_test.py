"""A loop is found at the first token at which the rule holds."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.sampling import loops

RULE = loops.LoopRule(max_period=4, min_repeats=3, min_span=6)


def push(tokens, sizes=None, rule=RULE):
  """Returns after how many tokens a loop is found, fed in chunks."""
  detector, done = loops.Detector(rule), 0
  for size in sizes or [len(tokens)]:
    chunk = np.array(tokens[done : done + size], np.int32)
    if (found := detector.push(chunk)) is not None:
      return done + found
    done += size
  return None


def first_by_rule(tokens, rule=RULE):
  """The rule as its docstring says it, tried at every length."""
  for end in range(1, len(tokens) + 1):
    for period in range(1, rule.max_period + 1):
      span = max(rule.min_repeats * period, rule.min_span)
      tail = tokens[end - span : end] if end >= span else []
      if tail and tail[period:] == tail[:-period]:
        return end
  return None


@pytest.mark.parametrize(
    'tokens, end',
    [
        ([5] * 5, None),  # min_span is 6.
        ([5] * 9, 6),
        ([1, 2] * 3, 6),
        ([9, 9, 1, 2, 1, 2, 1, 2, 1], 8),
        ([1, 2, 3] * 3, 9),
        ([1, 2, 3] * 2 + [1, 2, 4], None),
        ([1, 2, 3, 4] * 3, 12),
        ([1, 2, 3, 4, 5] * 6, None),  # max_period is 4.
        ([], None),
        (list(range(50)), None),
    ],
)
def test_by_hand(tokens, end):
  assert push(tokens) == end == first_by_rule(tokens)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 1), max_size=40),
    st.lists(st.integers(0, 9), max_size=20),
)
def test_is_the_rule_however_the_tokens_are_chunked(tokens, sizes):
  sizes = [*sizes, len(tokens)]
  assert push(tokens, sizes) == first_by_rule(tokens)


def test_rules_that_cannot_be():
  with pytest.raises(errors.ConfigError, match='max_period must be at least'):
    loops.LoopRule(max_period=0, min_repeats=3, min_span=0)
  with pytest.raises(errors.ConfigError, match='min_repeats at least 2'):
    loops.LoopRule(max_period=3, min_repeats=1, min_span=0)
