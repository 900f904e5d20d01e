"""Runs systems side by side: in turns, each in a process of its own.

A process per system keeps their peak memory apart, and lets none of them slow
another down while it waits.  They take turns within each repetition, so that a
machine that others disturb disturbs all of them alike.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
import traceback
from typing import Any, Protocol


class System(Protocol):
  """What is measured.  It is made in the process that measures it."""

  def warm_up(self) -> None:
    """Compiles and tunes: what comes before the first repetition."""

  def run(self) -> dict[str, Any]:
    """Does the work once; returns facts about it, the same each time."""

  def peak_bytes(self) -> int | None:
    """Returns the most memory its device has used; None on a CPU."""


@dataclasses.dataclass(frozen=True)
class Spec:
  """A system before it is made.

  Attributes:
    case: What it does.
    system: Its name.
    target: 'module:Class'.  Imported in its own process only, so that none
      counts the other's libraries as its memory.
    options: What the class takes.
  """

  case: str
  system: str
  target: str
  options: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Measured:
  """What came of a spec.

  Attributes:
    spec: What was measured.
    warm_s: Seconds of its warm-up, compilation among them.
    samples: Seconds of each repetition.
    facts: What `run` returned.
    peak_bytes: Of its process, or of the device if that has its own memory.
  """

  spec: Spec
  warm_s: float
  samples: tuple[float, ...]
  facts: Mapping[str, Any]
  peak_bytes: int

  @property
  def seconds(self) -> float:
    """The median of the repetitions."""
    return statistics.median(self.samples)


def measure(specs: Sequence[Spec], repetitions: int) -> list[Measured]:
  """Runs all specs in turns.

  Args:
    specs: All are in memory together.
    repetitions: How often each is timed.

  Raises:
    RuntimeError: If one of them fails, with its traceback.
  """
  with contextlib.ExitStack() as stack:
    workers, warm = [], []
    for spec in specs:  # One after the other: compiling takes all cores.
      worker = stack.enter_context(_Worker(spec))
      workers.append(worker)
      warm.append(worker.receive())
      say(f'{worker.spec.case}/{worker.spec.system} ready in {warm[-1]:.1f} s')
    samples = [[] for _ in workers]
    facts: list[Mapping[str, Any]] = [{} for _ in workers]
    for number in range(1, repetitions + 1):
      for i, worker in enumerate(workers):
        seconds, facts[i] = worker.ask('run')
        samples[i].append(seconds)
      say(f'{number} of {repetitions}: {[round(x[-1], 2) for x in samples]} s')
    peaks = [worker.ask('end') for worker in workers]
  return [
      Measured(spec, *numbers)
      for spec, *numbers in zip(
          specs, warm, map(tuple, samples), facts, peaks, strict=True
      )
  ]


def say(text: str) -> None:
  """Writes a line about how far it is to stderr."""
  print(text, file=sys.stderr, flush=True)


class _Worker:
  """A system in a process of its own."""

  def __init__(self, spec: Spec):
    self.spec = spec

  def __enter__(self) -> '_Worker':
    context = multiprocessing.get_context('spawn')
    self._pipe, theirs = context.Pipe()
    self._process = context.Process(
        target=_serve,
        args=(theirs, self.spec.target, dict(self.spec.options)),
        daemon=True,
    )
    self._process.start()
    theirs.close()
    return self

  def __exit__(self, *exc):
    self._pipe.close()  # It ends when nobody asks any more.
    self._process.join(10)
    if self._process.is_alive():
      self._process.terminate()

  def ask(self, what: str):
    self._pipe.send(what)
    return self.receive()

  def receive(self):
    name = f'{self.spec.case}/{self.spec.system}'
    try:
      good, answer = self._pipe.recv()
    except EOFError:
      self._process.join()
      raise RuntimeError(
          f'{name} ended with {self._process.exitcode}; -9 means that there was'
          ' no memory left.'
      ) from None
    if not good:
      raise RuntimeError(f'{name} failed:\n{answer}')
    return answer


def _serve(pipe, target: str, options: dict[str, Any]) -> None:
  """Lives in the worker: makes the system and answers until the pipe ends."""
  try:
    module, name = target.split(':')
    system = getattr(importlib.import_module(module), name)(**options)
    begin = time.perf_counter()
    system.warm_up()
    taken = time.perf_counter() - begin
    forget_peak()  # Compiling and trying batch sizes is no part of the work.
    pipe.send((True, taken))
    while pipe.recv() == 'run':
      begin = time.perf_counter()
      facts = system.run()
      pipe.send((True, (time.perf_counter() - begin, facts)))
    pipe.send((True, system.peak_bytes() or process_peak()))
  except (EOFError, BrokenPipeError):
    return  # Nobody asks any more.
  except Exception:
    pipe.send((False, traceback.format_exc()))


def forget_peak() -> None:
  """Counts the peak of this process anew, from what it holds now.

  On a GPU too if this is PyTorch's; JAX counts from its start on.
  """
  torch = sys.modules.get('torch')  # Not imported for this.
  if torch and torch.cuda.is_initialized():
    torch.cuda.reset_peak_memory_stats()
  with contextlib.suppress(OSError):  # Linux, where it may be forbidden.
    pathlib.Path('/proc/self/clear_refs').write_text('5')


def process_peak() -> int:
  """Returns the most bytes this process has had in memory."""
  status = pathlib.Path('/proc/self/status')
  if status.exists():
    # getrusage would count what the parent had before the exec.
    for line in status.read_text().splitlines():
      if line.startswith('VmHWM'):
        return int(line.split()[1]) * 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def num_cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def machine() -> dict[str, Any]:
  """Returns where and with what this runs: the last fields of every row."""
  versions = {
      name: importlib.metadata.version(name)
      for name in ('jax', 'torch', 'transformers')
  }
  commit = subprocess.run(
      ['git', 'describe', '--always', '--dirty'],
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
  ).stdout.strip()
  return {
      'device': _device(),
      'threads': num_cores(),
      'versions': versions | {'python': platform.python_version()},
      'commit': commit or 'unknown',
  }


def _device() -> str:
  """Returns the accelerator's name, or the processor's."""
  with contextlib.suppress(OSError):
    smi = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
    done = subprocess.run(smi, capture_output=True, text=True)
    if done.returncode == 0 and done.stdout.strip():
      return done.stdout.splitlines()[0].strip()
  info = pathlib.Path('/proc/cpuinfo')
  names = [
      line.partition(':')[2].strip()
      for line in (info.read_text().splitlines() if info.exists() else [])
      if line.startswith('model name')
  ]
  name = names[0] if names else platform.processor() or platform.machine()
  return f'{name}, {num_cores()} cores'


def batch_sizes(most: int, is_cpu: bool) -> list[int]:
  """Returns the sizes to try, up to `most`; a CPU gains nothing by more."""
  sizes = (1, 2, 4) if is_cpu else (1, 2, 4, 8, 16, 32, 64)
  return [size for size in sizes if size <= most]


def fastest(
    candidates: Sequence[int],
    run: Callable[[int], object],
    rows: int | None = None,
) -> int:
  """Returns the batch size that takes the least time per row.

  Args:
    candidates: Sizes, rising.  Once one is far slower, larger ones are not
      tried.
    run: Computes one batch of a size, to its end.
    rows: If given, `run` computes so many rows in batches of the size.
  """
  times: dict[int, float] = {}
  for size in candidates:
    run(size)
    taken = []
    for _ in range(2):
      begin = time.perf_counter()
      run(size)
      taken.append((time.perf_counter() - begin) / (rows or size))
    times[size] = min(taken)
    if times[size] > 1.5 * min(times.values()):
      break
  return min(times, key=times.__getitem__)
