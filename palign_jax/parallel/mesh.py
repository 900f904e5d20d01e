"""The devices as a grid of named axes.

data    rows; weights are replicated over it
fsdp    rows, and weights split over it
tensor  heads and MLP width
"""

from collections.abc import Mapping, Sequence
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from palign_jax.core import errors

AXES = ('data', 'fsdp', 'tensor')
ROWS = PartitionSpec(('data', 'fsdp'))  # How a batch's first axis is split.


def make(
    sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """Returns the mesh of `config.mesh`.

  Args:
    sizes: Devices along each of `AXES`; one of them may be -1, all the rest.
    devices: Which; None for all there are.

  Raises:
    ConfigError: If the sizes do not multiply to the number of devices.
  """
  if set(sizes) != set(AXES):
    raise errors.ConfigError(
        f'config.mesh has {sorted(sizes)}; it needs {list(AXES)}.'
    )
  shape = [int(sizes[axis]) for axis in AXES]
  num = jax.device_count() if devices is None else len(devices)
  free = [i for i, size in enumerate(shape) if size == -1]
  if len(free) == 1:
    rest = math.prod(size for size in shape if size != -1)
    shape[free[0]] = num // rest if rest > 0 and num % rest == 0 else 0
  if min(shape) < 1 or math.prod(shape) != num:
    raise errors.ConfigError(
        f'config.mesh asks for {dict(sizes)} devices and there are {num};'
        ' the sizes must multiply to that (one may be -1: the rest).'
    )
  kinds = (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(tuple(shape), AXES, axis_types=kinds, devices=devices)


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over data and fsdp."""
  return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def num_row_shards(mesh: Mesh) -> int:
  """Returns how many ways a batch's rows are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']
