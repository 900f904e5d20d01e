"""How much memory a device may use, and what a compiled program needs of it."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
import numpy as np

from palign_jax.core import errors

GIB = 2**30
_SHARE = 0.9  # Of what there is; the rest is for what no program accounts for.
_CGROUPS, _OWN = '/sys/fs/cgroup', '/proc/self/cgroup'
# By controller: version 2 has one tree for all and names none.
_LIMITS = {'': 'memory.max', 'memory': 'memory.limit_in_bytes'}


class OutOfMemory(Exception):
  """The device has no room for so much; less may fit."""


def budget(gib: float, mesh: Mesh) -> int:
  """Returns the bytes that a device of the mesh may use, the same on all hosts.

  Args:
    gib: What the config says; 0 for nine tenths of what there is: the
      device's memory, or on a CPU its share of the process's limit.
    mesh: The devices.

  Raises:
    ConfigError: If it is 0 and the device does not tell what it has.
  """
  device = mesh.local_devices[0]
  if gib:
    here = int(gib * GIB)
  elif device.platform == 'cpu':
    here = int(_SHARE * _host_limit() / len(mesh.local_devices))
  else:
    stats = device.memory_stats() or {}
    if 'bytes_limit' not in stats:
      raise errors.ConfigError(
          f'config.compute.memory_gib is 0, and {device.device_kind} does not'
          ' tell how much memory it has; set it to the GiB that judging may'
          ' take on a device.'
      )
    here = int(_SHARE * stats['bytes_limit'])
  if not mesh.is_multi_process:
    return here
  mib = np.int32(here >> 20)  # Bytes would not fit JAX's integers.
  return int(np.min(multihost_utils.process_allgather(mib))) << 20


def _host_limit() -> int:
  """Returns the bytes of this machine, or fewer if a cgroup says so."""
  limits = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
  for file in _limit_files():
    if file.exists() and (text := file.read_text().strip()).isdigit():
      limits.append(int(text))
  return min(limits)


def _limit_files() -> Iterator[pathlib.Path]:
  """Yields where a limit of this process's cgroup may stand, or one above it.

  In a container its cgroup is the root; under Slurm or systemd it seldom is.
  """
  places = {(name, '/') for name in _LIMITS}
  own = pathlib.Path(_OWN)
  for line in own.read_text().splitlines() if own.exists() else ():
    _, names, path = line.split(':', 2)
    places |= {(name, path) for name in names.split(',') if name in _LIMITS}
  for name, path in places:
    folder = pathlib.PurePosixPath(path).relative_to('/')
    for place in {folder, *folder.parents}:
      yield pathlib.Path(_CGROUPS) / name / place / _LIMITS[name]


def per_device(tree: Any) -> int:
  """Returns the bytes of arrays, or shapes with shardings, on one device."""

  def size(x) -> int:
    shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    return int(np.prod(shape)) * x.dtype.itemsize

  return sum(size(x) for x in jax.tree.leaves(tree))


def needed(program: jax.stages.Compiled) -> int:
  """Returns the bytes that a compiled program needs on one device."""
  use = program.memory_analysis()
  return (
      use.argument_size_in_bytes
      + use.output_size_in_bytes
      - use.alias_size_in_bytes
      + use.temp_size_in_bytes
  )


def is_exhausted(error: BaseException) -> bool:
  """Returns whether XLA says that there was no memory left."""
  text = str(error)
  return 'RESOURCE_EXHAUSTED' in text or 'ut of memory' in text


@contextlib.contextmanager
def guard() -> Iterator[None]:
  """Turns XLA's complaint about memory into `OutOfMemory`."""
  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if is_exhausted(e):
      raise OutOfMemory(str(e).splitlines()[0]) from e
    raise
