"""Rows of several examples each, so that little of a batch is padding.

Examples in a row do not see each other: each has its own segment number, its
positions start again at 0, and nothing is learnt across a seam
(tests/training/packing_test.py: packed equals unpacked).
"""

from collections.abc import Sequence

import numpy as np

from palign_jax.training import examples as examples_lib


class Batch(dict[str, np.ndarray]):
  """Arrays [B T] by name, and of which examples each row is made.

  Attributes:
    ids: Of the examples of each row.
  """

  ids: tuple[tuple[str, ...], ...] = ()


class Bins:
  """A batch being filled: each example goes to the first row with room."""

  def __init__(self, num_rows: int, max_tokens: int):
    self._max_tokens = max_tokens
    self._rows: list[list[examples_lib.Example]] = [[] for _ in range(num_rows)]
    self._free = [max_tokens] * num_rows

  def add(self, example: examples_lib.Example) -> bool:
    """Places `example`; returns False if no row has room for it."""
    size = len(example.tokens)
    for i, free in enumerate(self._free):
      if size <= free:
        self._rows[i].append(example)
        self._free[i] -= size
        return True
    return False

  @property
  def empty(self) -> bool:
    """Whether nothing was placed yet."""
    return not any(self._rows)

  def batch(self) -> Batch:
    """Returns the rows as arrays [B, T]; see `rows`."""
    return rows(self._rows, self._max_tokens)


def rows(
    packed: Sequence[Sequence[examples_lib.Example]], max_tokens: int
) -> Batch:
  """Lays examples side by side in rows of `max_tokens`.

  Args:
    packed: The examples of each row; they must fit.
    max_tokens: Width of a row.

  Returns:
    Arrays [B, T]: 'tokens', 'positions' (each example counts from 0),
    'segments' (1, 2, ... in a row; 0 is padding) and 'weights' (of predicting
    each token from the one on its left; 0 for the first of an example).
  """
  shape = (len(packed), max_tokens)
  batch = Batch(
      tokens=np.zeros(shape, np.int32),
      positions=np.zeros(shape, np.int32),
      segments=np.zeros(shape, np.int32),
      weights=np.zeros(shape, np.float32),
  )
  batch.ids = tuple(tuple(e.id for e in row) for row in packed)
  for i, row in enumerate(packed):
    start = 0
    for number, example in enumerate(row, 1):
      size = len(example.tokens)
      place = (i, slice(start, start + size))
      batch['tokens'][place] = example.tokens
      batch['positions'][place] = np.arange(size, dtype=np.int32)
      batch['segments'][place] = number
      batch['weights'][place] = example.weights
      batch['weights'][i, start] = 0.0
      start += size
  return batch
