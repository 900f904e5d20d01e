"""A function run in processes that may hang or die while the run goes on.

Each worker is a fresh interpreter that holds one item at a time.  One that
outlasts the limit is killed, one that dies is missed; either way the item that
it held is marked lost, a new worker takes its place, and the others go on.
`concurrent.futures` cannot do this: a dead process breaks its pool, and a
computation inside C code listens to no signal handler.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
import multiprocessing.connection
import os
import resource
import signal
import subprocess
import sys
import time
from typing import Any, Literal

# What one worker may take: `9^{9^{9^9}}` asks for more than any machine has.
_MEMORY_BYTES = 4 << 30
# Seconds after its limit at which a worker ends by itself, should its parent
# have been killed and nobody be left to end it.
_ORPHAN_GRACE_S = 10
_START_LIMIT_S = 120


@dataclasses.dataclass(frozen=True)
class Lost:
  """Stands for the result of an item whose worker gave none."""

  how: Literal['timeout', 'crash']


class Workers:
  """Calls a function in other processes; a context manager.

  Args:
    function: Named at the top of a module, so that a worker can import it;
      takes one item and returns one result, both picklable.  What it raises
      ends its worker, as a crash would.
    num_workers: Processes at most; they start when the first items come.
    limit_s: Seconds that an item may take, from when its worker gets it.
  """

  def __init__(
      self,
      function: Callable[[Any], Any],
      *,
      num_workers: int,
      limit_s: float | int,
  ):
    self._function = function
    self._num_workers = num_workers
    self._limit_s = limit_s
    self._workers: list[_Worker] = []

  def __enter__(self) -> 'Workers':
    return self

  def __exit__(self, *exc: object) -> None:
    while self._workers:
      self._workers.pop().kill()

  def run(self, items: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yields (index, result or `Lost`) for each item, as they are done."""
    waiting = iter(enumerate(items))
    unfinished = len(items)
    try:
      while unfinished:
        self._hand_out(waiting, unfinished)
        for worker in self._ready():
          index, result = worker.index, worker.collect()
          if isinstance(result, Lost):
            self._drop(worker)
          if index is not None:
            unfinished -= 1
            yield index, result
    finally:
      # Who stops listening midway must not find the rest in the next run.
      for worker in [w for w in self._workers if w.index is not None]:
        self._drop(worker)

  def _drop(self, worker: '_Worker') -> None:
    self._workers.remove(worker)
    worker.kill()

  def _hand_out(self, waiting: Iterator[tuple[int, Any]], most: int) -> None:
    while len(self._workers) < min(self._num_workers, most):
      self._workers.append(_Worker(self._function, self._limit_s))
    for worker in self._workers:
      if worker.is_idle:
        index, item = next(waiting, (None, None))
        if index is None:
          return
        worker.give(index, item)

  def _ready(self) -> list['_Worker']:
    """Waits until a worker has something to say or has run out of time."""
    busy = [worker for worker in self._workers if not worker.is_idle]
    soonest = min(worker.deadline for worker in busy)
    spoken = multiprocessing.connection.wait(
        [worker.pipe for worker in busy],
        timeout=max(0.0, soonest - time.monotonic()),
    )
    now = time.monotonic()
    return [w for w in busy if w.pipe in spoken or w.deadline <= now]


class _Worker:
  """One process, what it is doing, and until when it may."""

  def __init__(self, function: Callable[[Any], Any], limit_s: float | int):
    self._limit_s = limit_s
    self.pipe, theirs = multiprocessing.connection.Pipe()
    folders = [folder or os.getcwd() for folder in sys.path]
    # A fresh interpreter, not multiprocessing's `spawn`: that one would import
    # the main module again, and with it all of JAX.
    code = f'from palign_jax.grading import workers as w; w.serve({limit_s})'
    self._process = subprocess.Popen(
        [sys.executable, '-c', code],
        stdin=theirs.fileno(),  # The pipe, both ways.
        stdout=subprocess.DEVNULL,
        env=os.environ
        | {'PYTHONPATH': os.pathsep.join(folders), 'PYTHONHASHSEED': '0'},
        start_new_session=True,  # Control-C is for the parent to handle.
    )
    theirs.close()
    self.is_started = False
    self.index: int | None = None
    self.is_idle = False
    self.deadline = time.monotonic() + _START_LIMIT_S
    self.pipe.send(function)

  def give(self, index: int, item: Any) -> None:
    self.index = index
    self.is_idle = False
    self.deadline = time.monotonic() + self._limit_s
    try:
      self.pipe.send(item)
    except (BrokenPipeError, ConnectionResetError):
      pass  # It died idle; `collect` will find out.

  def collect(self) -> Any:
    """Returns what the worker said, or `Lost`."""
    try:
      said = self.pipe.recv() if self.pipe.poll() else Lost('timeout')
    except (EOFError, ConnectionResetError):
      said = Lost('crash')
    if not self.is_started:
      if isinstance(said, Lost):
        self.kill()
        raise RuntimeError(f'a grading worker does not start: {said.how}.')
      self.is_started = True
    self.index = None
    self.is_idle = True
    return said

  def kill(self) -> None:
    self._process.kill()
    self._process.wait()
    self.pipe.close()


def serve(limit_s: float | int) -> None:
  """Answers the items that come through the pipe on standard input.

  Args:
    limit_s: Seconds that an item may take; this process ends some time after.
  """
  # The kernel's own reaction to this signal ends even a loop in C.
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  if sys.platform == 'linux':  # Others refuse this bound.
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound = _MEMORY_BYTES if most < 0 else min(_MEMORY_BYTES, most)
    resource.setrlimit(resource.RLIMIT_AS, (bound, most))
  pipe = multiprocessing.connection.Connection(os.dup(0))
  try:
    function = pipe.recv()
    pipe.send('started')
    while True:
      item = pipe.recv()
      signal.alarm(math.ceil(limit_s) + _ORPHAN_GRACE_S)
      result = function(item)
      signal.alarm(0)
      pipe.send(result)
  except EOFError:
    return  # The parent closed its end, or is gone.
