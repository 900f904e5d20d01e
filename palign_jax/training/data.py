"""The order of training examples, and the batches they make.

What comes next follows from a few integers (`state`), which are saved with
every checkpoint: a resumed run sees the batches it would have seen.  An
example that does not fit the batch being filled waits for the next one;
nothing is lost but what is longer than a row, and that is counted.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import typing
from typing import Any, Protocol

from absl import logging
import grain

from palign_jax.core import errors
from palign_jax.training import examples as examples_lib, packing


@typing.runtime_checkable  # For the type checks of the tests.
class Source(Protocol):
  """Examples by number; a pure function of it, and possibly endless."""

  def __len__(self) -> int:
    ...

  def __getitem__(self, index: int) -> examples_lib.Example:
    ...


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Shape of a batch.

  Attributes:
    max_tokens: Width of a row; longer examples are left out and counted.
    batch_size: Rows of one optimiser step, over all devices.
    max_waiting: Examples that may wait for a later batch while shorter ones
      fill this one; more of them, less padding.
  """

  max_tokens: int
  batch_size: int
  max_waiting: int


def fitting(
    examples: Sequence[examples_lib.Example], max_tokens: int
) -> list[examples_lib.Example]:
  """Returns the examples that a row holds; how many it does not is logged.

  Raises:
    DataError: If there is none.
  """
  kept = [e for e in examples if len(e.tokens) <= max_tokens]
  num_long = len(examples) - len(kept)
  if not kept:
    raise errors.DataError(
        f'No example to train on: {num_long} have more than {max_tokens}'
        ' tokens; raise config.sft.max_tokens.'
    )
  if num_long:
    logging.warning(
        '%d of %d examples have more than %d tokens (config.sft.max_tokens)'
        ' and are left out.',
        num_long,
        len(examples),
        max_tokens,
    )
  return kept


def shuffled(
    examples: Sequence[examples_lib.Example], num_epochs: int, seed: int
) -> Source:
  """Returns `examples` `num_epochs` times over, each time in another order."""
  dataset = grain.MapDataset.source(examples).seed(seed).shuffle()
  return dataset.repeat(num_epochs)


class PackedBatches:
  """Batches of packed rows; the last one is filled up with empty rows."""

  def __init__(self, source: Source, config: DataConfig):
    self._source = source
    self._config = config
    self._next = 0
    self._waiting: dict[int, examples_lib.Example] = {}
    self._num_long = 0

  @property
  def state(self) -> Mapping[str, Any]:
    """Where the stream stands, as JSON."""
    return {
        'next': self._next,
        'waiting': list(self._waiting),
        'num_long': self._num_long,
    }

  def seek(self, state: Mapping[str, Any]) -> None:
    """Goes on from where `state` was read."""
    self._next = state['next']
    self._waiting = {i: self._source[i] for i in state['waiting']}
    self._num_long = state['num_long']

  @property
  def num_long(self) -> int:
    """Examples left out so far because they are longer than a row."""
    return self._num_long

  def __iter__(self) -> Iterator[packing.Batch]:
    while (batch := self._fill()) is not None:
      yield batch

  def count(self) -> int:
    """Returns how many batches are left, by making them all."""
    before = self.state
    number = sum(1 for _ in self)
    self.seek(before)
    return number

  def _fill(self) -> packing.Batch | None:
    bins = packing.Bins(self._config.batch_size, self._config.max_tokens)
    # Those that waited go first; dicts keep the order.
    waiting = {i: e for i, e in self._waiting.items() if not bins.add(e)}
    while (
        self._next < len(self._source)
        and len(waiting) < self._config.max_waiting
    ):
      index, self._next = self._next, self._next + 1
      example = self._source[index]
      if len(example.tokens) > self._config.max_tokens:
        self._num_long += 1
      elif not bins.add(example):
        waiting[index] = example
    self._waiting = waiting
    return None if bins.empty else bins.batch()
