"""SIGTERM: save what there is and end with a code that says "start me again".

A preempted machine, a batch system at its time limit and `kill` all send it.
Most work can be left anywhere, since rows go to parts that are written on the
way out; what cannot, a training step, notes the signal and asks.
"""

from collections.abc import Iterator
import contextlib
import signal

EXIT_CODE = 75  # EX_TEMPFAIL; launch/again.sh starts the run again.


class Stopped(SystemExit):
  """Ends the process with `EXIT_CODE`, through every `with` on the way."""

  def __init__(self):
    super().__init__(EXIT_CODE)


_asked = False
_held = 0


def listen() -> None:
  """From now on SIGTERM raises `Stopped` in the main thread, or is noted."""
  signal.signal(signal.SIGTERM, _on_signal)


def _on_signal(number, frame):
  del number, frame
  first = not _asked
  ask()
  if first and not _held:  # A second one must not stop the writing.
    raise Stopped


def ask() -> None:
  """Notes that the process is to end."""
  global _asked
  _asked = True


def asked() -> bool:
  """Returns whether the process is to end."""
  return _asked


def check() -> None:
  """Raises `Stopped` if the process is to end and nothing holds it.

  An exception out of a signal's handler may be swallowed, by a destructor it
  happens to interrupt; so whoever has just brought something to a safe place
  asks again.
  """
  if _asked and not _held:
    raise Stopped


@contextlib.contextmanager
def later() -> Iterator[None]:
  """Holds `Stopped` back; who does this asks `asked` and raises it himself."""
  global _held
  _held += 1
  try:
    yield
  finally:
    _held -= 1


def forget() -> None:
  """Takes back what was asked; for tests."""
  global _asked
  _asked = False
