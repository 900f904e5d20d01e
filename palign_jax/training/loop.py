"""The training loop: a step is in step.py, what it eats in data.py."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import math
import time
import typing
from typing import Any, Protocol

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import errors, progress
from palign_jax.training import diagnosis, step as step_lib

Batch = Mapping[str, np.ndarray]


class NonFiniteError(errors.PalignError):
  """A loss or gradient that is not a finite number."""


@typing.runtime_checkable  # For the type checks of the tests.
class Batches(Protocol):
  """A stream; after `seek(s)` it goes on from where `s` was read."""

  @property
  def state(self) -> Mapping[str, Any]:
    ...

  def seek(self, state: Mapping[str, Any]) -> None:
    ...

  def __iter__(self) -> Iterator[Batch]:
    ...


@typing.runtime_checkable
class Metrics(Protocol):
  """Where scalars go; see metrics.py."""

  def start(self, step: int) -> None:
    ...

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    ...

  def flush(self) -> None:
    ...


@dataclasses.dataclass(frozen=True)
class LoopConfig:
  """Length and cadence.

  Attributes:
    num_steps: Optimiser steps in all.
    log_every: Steps.
    save_every: Steps.
    save_every_s: Seconds; looked at when a step is logged.
  """

  num_steps: int
  log_every: int
  save_every: int
  save_every_s: float


def train(
    config: LoopConfig,
    state: step_lib.TrainState,
    step_fn: Callable[
        [step_lib.TrainState, Batch],
        tuple[step_lib.TrainState, Mapping[str, jax.Array]],
    ],
    batches: Batches,
    store: store_lib.CheckpointStore,
    metrics: Metrics,
    examine: diagnosis.Examine | None = None,
) -> step_lib.TrainState:
  """Trains on from the latest checkpoint of `store`, or from `state`.

  Args:
    config: Length and cadence.
    state: The initial TrainState, sharded.  Donated: do not use it again.
    step_fn: From `step.compile`.
    batches: The data; at least as many as the steps left.
    store: Where checkpoints go.
    metrics: Gets the scalars of every step that is logged or saved.
    examine: (state, batch) -> what of a failed step is not finite, for the
      message.

  Returns:
    The state after `num_steps`, which is also the last checkpoint.

  Raises:
    NonFiniteError: If loss or gradient stop being finite.  Nothing of that
      step is kept; the latest checkpoint is from before it.
    DataError: If the batches end too early.
  """
  done = 0
  if (restored := store.restore(state)) is not None:
    done, state = restored.step, restored.state
    batches.seek(restored.data)
  metrics.start(done)
  logging.info('Training from step %d to %d.', done, config.num_steps)
  names = _names(state.params)
  clock = _Clock()
  saved_at = time.monotonic()
  before = None
  stream = iter(batches)
  with progress.bar('Training', max(config.num_steps - done, 0)) as advance:
    for step in range(done + 1, config.num_steps + 1):
      batch = _next(stream, step)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, scalars = step_fn(state, batch)
      clock.count(batch)
      # Looks at the step before, while this one runs.
      if before is not None:
        _check(step - 1, *before, state, names, examine)
      before, last = (scalars, batch), step == config.num_steps
      save = last or step % config.save_every == 0
      if save or step % config.log_every == 0:
        host = _check(step, scalars, batch, state, names, examine)
        metrics.write(step, host | clock.rates())
        save = save or _due(saved_at, config.save_every_s)
      if save:  # Only ever a state whose loss was looked at.
        metrics.flush()
        store.save(step, state, batches.state)
        saved_at = time.monotonic()
      advance(1)
  return state


def _next(stream: Iterator[Batch], step: int) -> Batch:
  batch = next(stream, None)
  if batch is None:
    raise errors.DataError(
        f'The data ended before step {step}; lower the number of steps or'
        ' raise the number of epochs.'
    )
  return batch


def _names(params: Any) -> list[str]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  show = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  return [show(path) for path, _ in leaves]


def _check(
    step: int,
    scalars: Mapping[str, jax.Array],
    batch: Batch,
    state: step_lib.TrainState,
    names: list[str],
    examine: diagnosis.Examine | None,
) -> dict[str, float]:
  """Returns the scalars on the host, or raises if they are not finite."""
  host = {k: float(v) for k, v in jax.device_get(dict(scalars)).items()}
  leaf = int(host.pop('bad_leaf', -1))
  if math.isfinite(host['loss']) and math.isfinite(host['grad_norm']):
    return host
  ids = getattr(batch, 'ids', ())
  # A failed step changes nothing, so that it can be looked at afterwards.
  finding = diagnosis.Finding(None, tuple(range(len(ids))))
  finding = examine(state, batch) if examine else finding
  where = diagnosis.text(finding, ids, names[leaf] if leaf >= 0 else None)
  raise NonFiniteError(
      f'Loss is {host["loss"]} and gradient norm {host["grad_norm"]} at step'
      f' {step}{where and ", " + where}; lower config.sft.optim.peak_lr, or'
      ' look at those rows.  The latest checkpoint is from before this step.'
  )


def _due(since: float, every_s: float) -> bool:
  due = time.monotonic() - since >= every_s
  if jax.process_count() > 1:  # One clock decides for all.
    due = bool(multihost_utils.broadcast_one_to_all(np.array(due)))
  return due


class _Clock:
  """Tokens per second since the last reading, padding not counted."""

  def __init__(self):
    self._start, self._tokens, self._steps = time.monotonic(), 0, 0

  def count(self, batch: Batch) -> None:
    self._tokens += int(np.count_nonzero(batch['segments']))
    self._steps += 1

  def rates(self) -> dict[str, float]:
    seconds = max(time.monotonic() - self._start, 1e-9)
    rates = {
        'tokens_per_s': self._tokens / seconds,
        'seconds_per_step': seconds / self._steps,
    }
    self.__init__()
    return rates
