"""Runs in a process of its own, which may be killed at a chosen moment.

Processes are forked from a server that has imported everything and has not
touched a device.
"""

import multiprocessing
import os
import pathlib
import signal
import threading
from typing import Any

import jax
import ml_collections

from palign_jax import main
from palign_jax.stages import (  # noqa: F401  Imported once, by the server.
    align,
    assemble,
    grade,
    report,
    sample,
    sft,
    teach,
    truncate,
)

_SERVER = multiprocessing.get_context('forkserver')
_SERVER.set_forkserver_preload([__name__])


def start(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    cache: str,
    kill: tuple[int, float] | None = None,
) -> int:
  """Runs all stages on one device; returns the exit status.

  Args:
    config: The config.
    workdir: Where to.
    cache: Folder of compiled programs.
    kill: (n, s): SIGKILL s seconds after the n-th file got its name; with s
      below 0, just before.  None lets it live.
  """
  args = (config.to_dict(), str(workdir), cache, kill)
  process = _SERVER.Process(target=_run, args=args)
  process.start()
  process.join()
  return process.exitcode


def _run(config: dict[str, Any], workdir: str, cache: str, kill) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  if kill:
    _arm(*kill)
  main.run(ml_collections.ConfigDict(config), workdir, main.STAGES)


def _arm(number: int, delay_s: float) -> None:
  replace, done = os.replace, 0
  die = lambda: os.kill(os.getpid(), signal.SIGKILL)

  def counted(source, target):
    nonlocal done
    done += 1
    if done == number and delay_s < 0:
      die()
    replace(source, target)
    if done == number:
      threading.Timer(delay_s, die).start() if delay_s else die()

  os.replace = counted
