"""Goes on from the newest checkpoint and saves the next, or dies trying.

Processes are forked from a server that has imported everything and has not
touched a device.  Orbax's own work on files and folders passes Python's audit
hooks, where a process can be killed before each of them.  TensorStore's does
not: there it is killed when so many files have come to be.
"""

import multiprocessing
import os
import pathlib
import signal
import sys
import threading

import jax
import numpy as np

from palign_jax.checkpoints import store

_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload([__name__])
KEEP = 2


def start(directory: pathlib.Path, kill_at: int = 0, num_files: int = 0) -> int:
  """Lives one life; returns the exit status.

  Args:
    directory: Of the checkpoints; in `<directory>.steps` the process notes
      where it went on from, and `<directory>.count` holds how many operations
      the save took in a life that was not killed.
    kill_at: Before which operation of the save it dies; 0 lets it live.
    num_files: How many files there are when it dies; 0 lets it live.
  """
  args = str(directory), kill_at, num_files
  process = _SERVER.Process(target=_life, args=args)
  process.start()
  process.join()
  return process.exitcode


def state(step: int) -> dict:
  """Returns what is saved at a step: arrays that tell it, bit for bit."""
  rng = np.random.default_rng(step)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  tree = {'params': {'w': draw(64, 32), 'b': draw(32)}, 'step': np.int32(step)}
  return jax.tree.map(jax.numpy.asarray, tree)


def _life(directory: str, kill_at: int, num_files: int) -> None:
  jax.config.update('jax_platforms', 'cpu')
  with store.CheckpointStore(directory, keep=KEEP) as checkpoints:
    found = checkpoints.restore(state(0))
    done = found.step if found else 0
    if found:
      assert dict(found.data) == {'next': done * 10}, found.data
      jax.tree.map(np.testing.assert_array_equal, found.state, state(done))
    with open(directory + '.steps', 'a') as f:
      f.write(f'{done}\n')
    count = _count(directory, kill_at)
    if num_files:
      args = directory, num_files
      threading.Thread(target=_watch, args=args, daemon=True).start()
    checkpoints.save(done + 1, state(done + 1), {'next': (done + 1) * 10})
  pathlib.Path(directory + '.count').write_text(str(count()))


def _count(directory: str, kill_at: int):
  """Counts file operations; returns a function that tells how many."""
  number = 0

  def heard(event: str, args: tuple) -> None:
    nonlocal number
    if event.partition('.')[0] not in ('open', 'os', 'shutil'):
      return
    if not any(str(arg).startswith(directory + '/') for arg in args[:2]):
      return
    number += 1
    if number == kill_at:
      os.kill(os.getpid(), signal.SIGKILL)

  sys.addaudithook(heard)
  return lambda: number


def _watch(directory: str, num_files: int) -> None:
  before = sum(len(files) for _, _, files in os.walk(directory))
  while True:
    now = sum(len(files) for _, _, files in os.walk(directory))
    if now - before >= num_files:
      os.kill(os.getpid(), signal.SIGKILL)
