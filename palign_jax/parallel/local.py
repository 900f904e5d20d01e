"""The part of a mesh that stages use whose rows are divided over hosts.

Such a stage runs on each host's own devices: hosts need not keep step, and
what one computes depends on nothing of the others.
"""

import math

import jax
from jax.sharding import Mesh

from palign_jax.core import errors
from palign_jax.parallel import mesh as mesh_lib


def num_hosts(whole: Mesh) -> int:
  """Returns how many hosts the devices of a mesh belong to."""
  return len({device.process_index for device in whole.devices.flat})


def mesh(whole: Mesh, process: int | None = None) -> Mesh:
  """Returns the mesh of one process's devices.

  Of the axes over all devices, those that split rows are shortened, the first
  one first; `tensor` stays as it is.

  Args:
    whole: As `mesh.make` returns it.
    process: Its index; None is this one.

  Raises:
    ConfigError: If that does not come out even.
  """
  hosts = num_hosts(whole)
  if hosts == 1:
    return whole
  process = jax.process_index() if process is None else process
  own = [d for d in whole.devices.flat if d.process_index == process]
  sizes = shorten(dict(whole.shape), hosts)
  if math.prod(sizes.values()) != len(own):
    raise errors.ConfigError(
        f'config.mesh is {dict(whole.shape)} and each of {hosts} hosts has'
        f' {len(own)} devices: judging and sampling run on each host by'
        f' itself, so config.mesh.tensor must divide {len(own)} and the other'
        ' axes together be a multiple of the number of hosts.'
    )
  return jax.make_mesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=whole.axis_types,
      devices=sorted(own, key=lambda device: device.id),
  )


def check_rows(num_rows: int, mesh: Mesh) -> None:
  """Raises if judging and sampling cannot divide a batch over a host.

  Args:
    num_rows: Of `config.compute`.
    mesh: Of the host.

  Raises:
    ConfigError: If they do not split.
  """
  shards = mesh_lib.num_row_shards(mesh)
  if num_rows % shards:
    raise errors.ConfigError(
        f'config.compute.num_rows is {num_rows}, which does not split over'
        f' {shards} groups of devices (config.mesh.data * fsdp * sequence,'
        ' on one host); take a multiple.'
    )


def shorten(sizes: dict[str, int], num_hosts: int) -> dict[str, int]:
  """Returns axes whose product is `num_hosts` times less, if that can be."""
  left, short = num_hosts, dict(sizes)
  for name in sizes:
    if name != 'tensor':
      common = math.gcd(short[name], left)
      short[name] //= common
      left //= common
  return short
