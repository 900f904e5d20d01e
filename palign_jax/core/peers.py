"""The processes of a run, as one of them sees them.

Rows are divided by their number; what the processes tell each other is small
and JSON.  `parallel/peers.py` has the processes of jax.distributed.
"""

from collections.abc import Sequence
import typing
from typing import Any, Protocol, TypeVar

from palign_jax.core import errors, stopping

_T = TypeVar('_T')


LOST = 134  # SIGABRT: how JAX ends a process if it is the first to notice.


class PeerError(errors.PalignError):
  """Another process of the run has failed, or does something else."""


class PeerLost(SystemExit):
  """Another process is gone, or has not come, and nobody knows of an error.

  It may have been killed, or its machine be starting anew: all are to be
  started again.  Ends this process with `LOST`, through every `with`.

  Attributes:
    reason: What is known.
  """

  def __init__(self, reason: str):
    super().__init__(LOST)
    self.reason = reason


@typing.runtime_checkable  # For the type checks of the tests.
class Peers(Protocol):
  """This process is number `index` of `count`."""

  index: int
  count: int

  def gather(self, value: Any, at: str) -> list[Any]:
    """Returns the value of every process, once all have come here.

    Args:
      value: JSON.
      at: Names the place; the same for all.

    Raises:
      PeerError: If one has failed, or is at another place.
      PeerLost: If one is gone.
      Stopped: If one was told to end.
    """
    ...

  def check(self) -> None:
    """Raises as `gather` does, if there is reason to; does not wait."""
    ...

  def leave(self, code: int, reason: str) -> None:
    """Tells the others that this process ends."""
    ...


class Alone:
  """A run of one process."""

  index, count = 0, 1

  def gather(self, value: Any, at: str) -> list[Any]:
    """Returns the one value."""
    del at
    return [value]

  def check(self) -> None:
    """Raises `Stopped` if this process was told to end."""
    stopping.check()

  def leave(self, code: int, reason: str) -> None:
    """There is nobody to tell."""
    del code, reason


def share(peers: Peers, items: Sequence[_T]) -> Sequence[_T]:
  """Returns this process's items.

  Which they are follows from their number alone, not from what is done
  already: so no process needs to know how far another is.
  """
  return items[peers.index :: peers.count]
