"""Finds out that a completion has begun to repeat itself.

A student that loops never stops by itself; waiting for its last token would
cost more than all other rows of its batch.
"""

import dataclasses

import numpy as np

from palign_jax.core import errors


@dataclasses.dataclass(frozen=True)
class LoopRule:
  """A tail loops if it is one block of tokens, over and over.

  Its last max(min_repeats * period, min_span) tokens must repeat with that
  period (in tokens), for some period up to `max_period`.
  """

  max_period: int
  min_repeats: int
  min_span: int  # In tokens; keeps short rows of dashes or zeros from counting.

  def __post_init__(self):
    if self.max_period < 1 or self.min_repeats < 2:
      raise errors.ConfigError(
          f'{self}: max_period must be at least 1 and min_repeats at least 2.'
      )


# A block of up to 64 tokens, 4 times and over 128 tokens: no honest text.
DEFAULT = LoopRule(max_period=64, min_repeats=4, min_span=128)


class Detector:
  """Watches one completion; the split of its tokens into calls is no matter."""

  def __init__(self, rule: LoopRule):
    periods = np.arange(1, rule.max_period + 1)
    span = np.maximum(rule.min_repeats * periods, rule.min_span)
    # A tail of `span` tokens has span - period tokens equal to one before.
    self._need = (span - periods).astype(np.int32)
    self._runs = np.zeros(rule.max_period, np.int32)
    self._tail = np.full(rule.max_period, -1, np.int32)

  def push(self, tokens: np.ndarray) -> int | None:
    """Reads the next tokens of the completion.

    Args:
      tokens: int32, of any number, at least 0 each.

    Returns:
      How many of `tokens` there are when the rule first holds (from 1), or
      None if it does not hold.
    """
    num, period = len(tokens), len(self._tail)
    past = np.concatenate([self._tail, tokens.astype(np.int32)])
    windows = np.lib.stride_tricks.sliding_window_view(past, period)[:num]
    same = windows[:, ::-1] == past[period:, None]  # [token, period - 1].
    place = np.arange(1, num + 1, dtype=np.int32)[:, None]
    broken = np.maximum.accumulate(np.where(same, 0, place), axis=0)
    runs = place - broken + np.where(broken == 0, self._runs, 0)
    found = np.any(runs >= self._need, axis=1)
    if found.any():
      return int(np.argmax(found)) + 1
    if num:
      self._runs = runs[-1]
    self._tail = past[num:]
    return None
