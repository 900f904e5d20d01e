"""How far a long step is: a bar on a terminal, a line now and then elsewhere.

Both go to stderr, so that what a command prints can still be piped.
"""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import datetime
import sys
import time
from typing import TypeVar

import rich.console
import rich.progress

_T = TypeVar('_T')
_LINE_EVERY_S = 5.0


def track(
    iterable: Iterable[_T], description: str, total: int | None = None
) -> Iterator[_T]:
  """Yields the items of `iterable`, showing how many were taken.

  Args:
    iterable: What to go through.
    description: What is done, in a few words.
    total: Its length, if it does not know it itself.

  Yields:
    Its items.
  """
  if total is None and hasattr(iterable, '__len__'):
    total = len(iterable)
  with bar(description, total) as advance:
    for item in iterable:
      yield item
      advance(1)


@contextlib.contextmanager
def bar(description: str, total: int | None) -> Iterator[Callable[[int], None]]:
  """Shows progress while the context is open.

  Args:
    description: What is done, in a few words.
    total: How much there is to do; None if nobody knows.

  Yields:
    A function that says how much more is done, `advance(n)`.
  """
  console = rich.console.Console(stderr=True)
  if not console.is_terminal:
    lines = Lines(description, total, clock=time.monotonic, write=_to_stderr)
    try:
      yield lines.advance
    finally:
      lines.finish()
    return
  columns = (
      rich.progress.TextColumn('{task.description}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
  )
  with rich.progress.Progress(*columns, console=console) as progress:
    # Descriptions may hold brackets, which rich would read as markup.
    task = progress.add_task(description.replace('[', r'\['), total=total)
    yield lambda n: progress.advance(task, n)


class Lines:
  """Progress as plain lines: 'description: done/total, elapsed'."""

  def __init__(
      self,
      description: str,
      total: int | None,
      *,
      clock: Callable[[], float],
      write: Callable[[str], object],
  ):
    """Starts the clock.

    Args:
      description: What is done.
      total: How much there is to do, or None.
      clock: Gives the time in seconds.
      write: Takes a line, without its end.
    """
    self._description = description
    self._total = total
    self._clock = clock
    self._write = write
    self._done = 0
    self._start_s = self._written_s = clock()

  def advance(self, n: int) -> None:
    """Counts `n` more, and writes a line if the last is long ago."""
    self._done += n
    if self._clock() - self._written_s >= _LINE_EVERY_S:
      self._line()

  def finish(self) -> None:
    """Writes the last line."""
    self._line()

  def _line(self) -> None:
    self._written_s = self._clock()
    of = '' if self._total is None else f'/{self._total}'
    elapsed = datetime.timedelta(seconds=int(self._written_s - self._start_s))
    self._write(f'{self._description}: {self._done}{of}, {elapsed}')


def _to_stderr(line: str) -> None:
  print(line, file=sys.stderr, flush=True)
