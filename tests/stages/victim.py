"""Runs in a process of its own, which may be killed at a chosen moment.

Processes are forked from a server that has imported everything and has not
touched a device.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import threading
from typing import Any

import jax
import ml_collections

from palign_jax import main
from palign_jax.checkpoints import store as store_lib
from palign_jax.core import stopping
from palign_jax.parallel import hosts, peers
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
from tests import processes as processes_lib, stores

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


def start_hosts(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    cache: str,
    count: int,
    stop: tuple[int, int, signal.Signals] | None = None,
) -> list[int]:
  """Runs all stages in processes that take each other for hosts.

  Args:
    config: The config.
    workdir: Where to.
    cache: Folder of compiled programs.
    count: Of the processes, each with one device.
    stop: (host, n, signal): what this host gets before its n-th file gets its
      name.  If it is killed, so are the others, as on a slice that is taken
      away.

  Returns:
    The exit statuses.
  """
  port, processes = processes_lib.free_port(), []
  for index in range(count):
    kill = (stop[1], -1.0, stop[2]) if stop and index == stop[0] else None
    variables = {
        hosts.COORDINATOR: f'localhost:{port}',
        hosts.COUNT: str(count),
        hosts.INDEX: str(index),
    }
    args = (config.to_dict(), str(workdir), cache, kill, variables)
    processes.append(_SERVER.Process(target=_run, args=args))
    processes[-1].start()
  if stop and stop[2] == signal.SIGKILL:
    processes[stop[0]].join()
    for process in processes:
      process.kill()
  for process in processes:
    process.join()
  return [process.exitcode for process in processes]


def _run(
    config: dict[str, Any],
    workdir: str,
    cache: str,
    kill,
    variables: Mapping[str, str] | None = None,
) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  hosts.join(variables or {})
  stopping.listen()
  if kill:
    _arm(*kill)
  with peers.joined() as team:
    main.run(ml_collections.ConfigDict(config), workdir, main.STAGES, team)


def start_on_store(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    cache: str,
    crashes: Sequence[int],
) -> int:
  """Runs all stages on a store, and then copies what it holds to `folder`.

  Args:
    config: The config.
    folder: Where to; checkpoints are on disk all the while.
    cache: Folder of compiled programs.
    crashes: At which put each life ends.

  Returns:
    The exit status.
  """
  args = (config.to_dict(), str(folder), cache, tuple(crashes))
  process = _SERVER.Process(target=_run_on_store, args=args)
  process.start()
  process.join()
  return process.exitcode


def _run_on_store(config, folder: str, cache: str, crashes) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_compilation_cache_dir', cache)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  os.environ['HOME'] = folder + '.home'  # Where models are staged.
  on_disk = functools.partial(_OnDisk, folder + '.checkpoints')
  sft.store_lib.CheckpointStore = on_disk
  with stores.bucket() as (bucket, store):
    for put in (*crashes, 0):
      store.num_puts, store.fail_at = 0, put
      with contextlib.suppress(stores.Crash):
        main.run(ml_collections.ConfigDict(config), bucket / 'run', main.STAGES)
      assert put == 0 or store.num_puts >= put
    for name, data in store.objects.items():
      path = pathlib.Path(folder) / name.removeprefix('gs://bucket/run/')
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)


class _OnDisk(store_lib.CheckpointStore):
  """Orbax speaks to object stores by itself, not through epath."""

  def __init__(self, place, directory, **options):
    del directory
    super().__init__(place, **options)


def _arm(number: int, delay_s: float, how=signal.SIGKILL) -> None:
  replace, done = os.replace, 0
  die = lambda: os.kill(os.getpid(), how)

  def counted(source, target):
    nonlocal done
    done += 1
    if done == number and delay_s < 0:
      die()
    replace(source, target)
    if done == number:
      threading.Timer(delay_s, die).start() if delay_s else die()

  os.replace = counted
