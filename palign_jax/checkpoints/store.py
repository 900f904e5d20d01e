"""Training checkpoints: <directory>/<step>/.

One holds the TrainState, as sharded arrays, and where the batch iterator
stood, as JSON.  The two are saved together or not at all, so a resumed run
sees the batches it would have seen (tests/training/loop_test.py checks it bit
for bit).
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
from typing import Any, TypeVar

from absl import logging
from etils import epath
import jax
from orbax.checkpoint import v1 as ocp

from palign_jax.core import errors, peers as peers_lib

_T = TypeVar('_T')
_DATA = 'data'  # Where the batch iterator stood, among Orbax's metadata.
_SHOWN = 6  # Arrays in a message.


@dataclasses.dataclass(frozen=True)
class Restored:
  """What `restore` found.  `step` counts finished optimiser steps."""

  step: int
  state: Any
  data: Mapping[str, Any]


class CheckpointStore:
  """Numbered checkpoints.  Saves in the background; leaving `with` waits."""

  def __init__(
      self,
      directory: epath.PathLike,
      *,
      keep: int,
      peers: peers_lib.Peers | None = None,
  ):
    """Opens the folder, or makes it.

    Args:
      directory: Where checkpoints are, for all processes the same.
      keep: How many of the newest to keep.
      peers: The processes that save and restore; None for this one alone.
    """
    self._peers = peers or peers_lib.Alone()
    self._directory = epath.Path(directory)
    if '://' not in str(directory):
      self._directory = self._directory.absolute()
    self._checkpointer = ocp.training.Checkpointer(
        self._directory,
        preservation_policy=ocp.training.preservation_policies.LatestN(keep),
    )
    self._broken: set[int] = set()

  def __enter__(self) -> 'CheckpointStore':
    return self

  def __exit__(self, kind, *exc):
    try:
      with self._writing():
        self._checkpointer.close()
    except errors.CheckpointError as e:
      if kind is None:
        raise
      logging.error('%s', e)  # What ended the training is told as well.

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    """Turns whatever a save can fail with, now or late, into one line."""
    try:
      yield
    except errors.PalignError:
      raise
    except Exception as e:  # Orbax and TensorStore raise many types.
      raise errors.CheckpointError(
          f'{self._directory}: a checkpoint cannot be written ({_reason(e)});'
          ' mend this (is there room?) and run the same command again, it goes'
          ' on from the checkpoint before.'
      ) from e

  def save(self, step: int, state: Any, data: Mapping[str, Any]) -> None:
    """Saves `step`, unless it is there already and could be read."""
    if step in self._broken or step not in self._steps():
      with self._writing():
        self._checkpointer.save_async(
            step,
            state,
            force=True,
            overwrite=step in self._broken,
            custom_metadata={_DATA: dict(data)},
        )
      self._broken.discard(step)

  def restore(self, like: Any, step: int | None = None) -> Restored | None:
    """Returns one checkpoint, or None if there is none at all.

    Args:
      like: A TrainState of arrays or `ShapeDtypeStruct`s; it gives structure,
        shapes, dtypes, and the sharding each array is restored into.
      step: Which one; None for the latest that can be read.  One that cannot
        (a disk that lost part of it) is logged, and written anew when training
        passes it again.

    Raises:
      CheckpointError: If `step` is absent, its arrays do not fit `like`, or no
        checkpoint can be read.
    """
    steps = self._steps()
    if step is not None:
      if step not in steps:
        raise errors.CheckpointError(
            f'{self._directory} has no step {step}; it has {steps}.'
        )
      return self._load(step, like)
    for candidate in reversed(steps):
      try:
        return self._load(candidate, like)
      except _BrokenError as e:
        self._broken.add(candidate)
        logging.warning('%s; trying the one before.', e)
    if steps:
      raise errors.CheckpointError(
          f'{self._directory}: none of the checkpoints {steps} can be read;'
          ' remove the folder to start anew.'
      )
    return None

  def _load(self, step: int, like: Any) -> Restored:
    saved = self._agreed(step, lambda: self._metadata(step, like))
    state = self._agreed(step, lambda: _arrays(saved.path, like))
    return Restored(step, state, saved.custom_metadata[_DATA])

  def _agreed(self, step: int, read: Callable[[], _T]) -> _T:
    """Returns what this host reads of a checkpoint, once all have read theirs.

    Raises:
      _BrokenError: If one cannot: what one cannot read, none may go on from.
    """
    found, trouble = None, ''
    try:
      found = read()
    except errors.PalignError:
      raise
    except Exception as e:  # Orbax has no one type for what is broken.
      trouble = _reason(e)
    troubles = self._peers.gather(trouble, at=f'checkpoint {step}')
    if any(troubles):
      raise _BrokenError(
          f'Checkpoint {self._directory}/{step} cannot be read'
          f' ({next(filter(None, troubles))})'
      )
    return found

  def _metadata(self, step: int, like: Any):
    """Returns what a checkpoint says of itself, if it is one of `like`."""
    saved = self._checkpointer.metadata(step)
    if not (found := _leaves(saved.metadata)):
      raise OSError('the list of its arrays is lost')
    if _DATA not in (saved.custom_metadata or {}):
      raise OSError('where its data stood is lost')
    if differ := sorted(found ^ _leaves(like)):
      shown, more = ', '.join(differ[:_SHOWN]), len(differ) - _SHOWN
      shown += f' and {more} more' if more > 0 else ''
      raise errors.CheckpointError(
          f'{self._directory}/{step} is of another model or optimiser; one of'
          f' the two lacks each of: {shown}. Set config.student.path and'
          ' config.sft (method, rank, targets, optim.name) as they were, or'
          f' remove {self._directory} to start anew.'
      )
    return saved

  def _steps(self) -> list[int]:
    return sorted(c.step for c in self._checkpointer.checkpoints)


class _BrokenError(errors.CheckpointError):
  """A checkpoint that one of the hosts cannot read."""


def _arrays(path: epath.PathLike, like: Any) -> Any:
  """Returns the state; each host reads what its devices hold.

  They do not wait for each other: one that fails would leave the others at
  Orbax's barrier for five minutes.
  """
  context, index = ocp.Context(), jax.process_index()
  context.multiprocessing.primary_host = index
  context.multiprocessing.active_processes = {index}
  with context:
    return ocp.load(path, jax.tree.map(_abstract, like))


def _reason(error: Exception) -> str:
  """Returns the line of an error that says most, without its end."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines[0] if lines else type(error).__name__).rstrip('.')


def _leaves(tree: Any) -> set[str]:
  """Returns each leaf as text, like 'params/mlp/up float32[16, 8]'."""
  return {
      f'{jax.tree_util.keystr(path, simple=True, separator="/")}'
      f' {x.dtype}{list(x.shape)}'
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
  }


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
