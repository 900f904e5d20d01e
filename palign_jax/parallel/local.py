"""The part of a mesh that stages use whose rows are divided over hosts.

Such a stage runs on each host's own devices: hosts need not keep step, and
what one computes depends on nothing of the others.
"""

import math

import jax
from jax.sharding import Mesh

from palign_jax.core import errors


def mesh(whole: Mesh) -> Mesh:
  """Returns the mesh of this process's devices.

  Of the axes over all devices, those that split rows are shortened, the first
  one first; `tensor` stays as it is.

  Args:
    whole: As `mesh.make` returns it.

  Raises:
    ConfigError: If that does not come out even.
  """
  num_hosts = jax.process_count()
  if num_hosts == 1:
    return whole
  num_local = jax.local_device_count()
  sizes = shorten(dict(whole.shape), num_hosts)
  if math.prod(sizes.values()) != num_local:
    raise errors.ConfigError(
        f'config.mesh is {dict(whole.shape)} and each of {num_hosts} hosts has'
        f' {num_local} devices: judging and sampling run on each host by'
        f' itself, so config.mesh.tensor must divide {num_local} and the other'
        ' axes together be a multiple of the number of hosts.'
    )
  return jax.make_mesh(
      tuple(sizes.values()),
      tuple(sizes),
      axis_types=whole.axis_types,
      devices=jax.local_devices(),
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
