"""The training loop: a step is in step.py, what it eats in data.py."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
import time
import typing
from typing import Any, Protocol

from absl import logging
import jax
import numpy as np

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import errors, progress, stopping
from palign_jax.parallel import ballot as ballot_lib
from palign_jax.training import (
    diagnosis,
    gradients,
    profiling,
    step as step_lib,
)

Batch = Mapping[str, np.ndarray]

# What a process may want after a step; the largest wish of all is done.
_GO_ON, _SAVE, _STOP = 0, 1, 2


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
    save_every_s: Seconds, by the clock of process 0.
  """

  num_steps: int
  log_every: int
  save_every: int
  save_every_s: float


def train(
    config: LoopConfig,
    like: step_lib.TrainState,
    begin: Callable[[], step_lib.TrainState],
    step_fn: Callable[
        [step_lib.TrainState, Batch],
        tuple[step_lib.TrainState, Mapping[str, jax.Array]],
    ],
    batches: Batches,
    store: store_lib.CheckpointStore,
    metrics: Metrics,
    examine: diagnosis.Examine | None = None,
    profiler: profiling.Profiler | None = None,
) -> step_lib.TrainState:
  """Trains on from the latest checkpoint of `store`, or from the beginning.

  Args:
    config: Length and cadence.
    like: Shapes and places of the state.
    begin: Returns the state before the first step, which is donated.  Not
      called if there is a checkpoint: two states might not fit.
    step_fn: From `step.compile`.
    batches: The data; at least as many as the steps left.
    store: Where checkpoints go.
    metrics: Gets the scalars of every step that is logged or saved.
    examine: (state, batch) -> what of a failed step is not finite, for the
      message.
    profiler: Traces some of the steps.

  Returns:
    The state after `num_steps`, which is also the last checkpoint.

  Raises:
    Stopped: If this process or another was told to end: after the step that
      is running, which is saved.
    NonFiniteError: If loss or gradient stop being finite.  Nothing of that
      step is kept; the latest checkpoint is from before it.
    DataError: If the batches end too early.
  """
  if restored := store.restore(like):
    done, state = restored.step, restored.state
    batches.seek(restored.data)
  else:
    done, state = 0, begin()
  metrics.start(done)
  logging.info('Training from step %d to %d.', done, config.num_steps)
  names = gradients.names(state.params)
  clock = _Clock()
  saved_at = time.monotonic()
  before, ballot = None, ballot_lib.Ballot()
  stream = iter(batches)
  if profiler:
    profiler.begin(done, config.num_steps)
  with (
      stopping.later(),
      profiler or contextlib.nullcontext(),
      progress.bar('Training', max(config.num_steps - done, 0)) as advance,
  ):
    for step in range(done + 1, config.num_steps + 1):
      batch = _next(stream, step)
      vote = ballot.cast(_wish(saved_at, config.save_every_s))
      if profiler:
        profiler.before(step, state)
      with jax.profiler.StepTraceAnnotation('train', step_num=step):
        state, scalars = step_fn(state, batch)
      clock.count(batch)
      if profiler:
        profiler.after(step, state)
      # Looks at the step before, while this one runs.
      if before is not None:
        _check(step - 1, *before, state, names, examine)
      before, wish = (scalars, batch), int(vote)
      save = step == config.num_steps or step % config.save_every == 0
      save = save or wish > _GO_ON
      if save or step % config.log_every == 0:
        host = _check(step, scalars, batch, state, names, examine)
        metrics.write(step, host | clock.rates())
      if save:  # Only ever a state whose loss was looked at.
        metrics.flush()
        store.save(step, state, batches.state)
        saved_at = time.monotonic()
      advance(1)
      if wish == _STOP and step < config.num_steps:
        logging.info('Told to end: step %d is saved.', step)
        raise stopping.Stopped
  return state


def _next(stream: Iterator[Batch], step: int) -> Batch:
  batch = next(stream, None)
  if batch is None:
    raise errors.DataError(
        f'The data ended before step {step}; lower the number of steps or'
        ' raise the number of epochs.'
    )
  return batch


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
  part = int(host.pop('first_bad', -1))
  if math.isfinite(host['loss']) and math.isfinite(host['grad_norm']):
    return host
  ids = getattr(batch, 'ids', ())
  # The step changed nothing, nor did the one that may have run since: this is
  # the state that it began with.
  finding = _examined(examine, state, batch)
  finding = finding or diagnosis.Finding(None, tuple(range(len(ids))))
  where = diagnosis.text(finding, ids, names[part] if part >= 0 else None)
  raise NonFiniteError(
      f'Loss is {host["loss"]} and gradient norm {host["grad_norm"]} at step'
      f' {step}{where and ", " + where}; lower config.sft.optim.peak_lr, or'
      ' look at those rows.  The latest checkpoint is from before this step.'
  )


def _examined(
    examine: diagnosis.Examine | None, state: step_lib.TrainState, batch: Batch
) -> diagnosis.Finding | None:
  """Returns what of a failed step is not finite, if that can be found out."""
  try:
    return examine(state, batch) if examine else None
  except Exception as e:  # It may need more memory than a step.
    reason = str(e).strip().partition('\n')[0] or type(e).__name__
    logging.warning('What was not finite cannot be looked for (%s).', reason)
    return None


def _wish(saved_at: float, every_s: float) -> int:
  if stopping.asked():
    return _STOP
  is_due = time.monotonic() - saved_at >= every_s
  return _SAVE if is_due and not jax.process_index() else _GO_ON


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
