"""The devices as a grid of named axes.

data      rows; weights are replicated over it
fsdp      rows, and weights split over it
tensor    heads and MLP width
sequence  the tokens of a row, in training; weights split over it as over fsdp

Pods of several slices, which a data-centre network (DCN) joins, lie along
data: over DCN go gradients, once a step, and nothing else.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from palign_jax.core import errors
from palign_jax.parallel import rules

AXES = ('data', 'fsdp', 'tensor', 'sequence')
SLICES = 'dcn_data'
ROWS = rules.spec('act_batch')  # How a batch's first axis is split.
TOKENS = rules.spec('act_batch', 'act_time')  # And its first two.


def make(
    sizes: Mapping[str, int], devices: Sequence[Any] | None = None
) -> Mesh:
  """Returns the mesh of `config.mesh`.

  Args:
    sizes: Devices along each of `AXES`, 1 if it is left out; one of them may
      be -1, all the rest.  And 'dcn_data', 1 if it is left out: over how many
      slices the data axis goes.
    devices: Of JAX, or of a topology; all that there are if None.

  Raises:
    ConfigError: If the sizes do not multiply to the number of devices, or the
      slices are not as many as the config says.
  """
  devices = jax.devices() if devices is None else devices
  if unknown := sorted(set(sizes) - {*AXES, SLICES}):
    raise errors.ConfigError(
        f'config.mesh has {unknown}; it needs {[*AXES, SLICES]}.'
    )
  shape = _shape(sizes, len(devices))
  slices = int(sizes.get(SLICES, 1))
  kinds = (AxisType.Auto,) * len(AXES)
  if slices == 1:
    _check_alone(devices)
    with contextlib.suppress(NotImplementedError):
      return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    # As 32 x 2 on a torus of 8 x 8: an axis of the torus is divided.
    grid = mesh_utils.create_device_mesh(
        shape, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, AXES, axis_types=kinds)
  return Mesh(over_slices(shape, slices, devices), AXES, axis_types=kinds)


def _shape(sizes: Mapping[str, int], num: int) -> tuple[int, ...]:
  shape = [int(sizes.get(axis, 1)) for axis in AXES]
  free = [i for i, size in enumerate(shape) if size == -1]
  if len(free) == 1:
    rest = math.prod(size for size in shape if size != -1)
    shape[free[0]] = num // rest if rest > 0 and num % rest == 0 else 0
  if min(shape) < 1 or math.prod(shape) != num:
    raise errors.ConfigError(
        f'config.mesh asks for {dict(sizes)} devices and there are {num};'
        ' the sizes must multiply to that (one may be -1: the rest).'
    )
  return tuple(shape)


def _slices(devices: Sequence[Any]) -> int:
  return len({getattr(d, 'slice_index', 0) for d in devices})


def _check_alone(devices: Sequence[Any]) -> None:
  found = _slices(devices)
  if found > 1:
    raise errors.ConfigError(
        f'config.mesh.{SLICES} is 1 and the devices lie in {found} slices; set'
        f' it to {found}.'
    )


def over_slices(
    shape: tuple[int, ...], slices: int, devices: Sequence[Any]
) -> np.ndarray:
  """Returns the devices as a grid whose data axis goes over slices first.

  Devices that know of no slices (hosts of GPUs) are parted by process; TPUs
  know, and those of one slice are of one.

  Args:
    shape: Of the grid, along `AXES`.
    slices: How many there are.
    devices: All of them.

  Raises:
    ConfigError: If the devices lie in other numbers of slices, or data does
      not split over them.
  """
  by_process = _slices(devices) == 1 and devices[0].platform != 'tpu'
  found = len({d.process_index for d in devices})
  found = found if by_process else _slices(devices)
  if slices != found or shape[0] % slices:
    raise errors.ConfigError(
        f'config.mesh.{SLICES} is {slices}, config.mesh.data {shape[0]}, and'
        f' the devices lie in {found} {"hosts" if by_process else "slices"};'
        f' set {SLICES} to {found}, and data to a multiple of it.'
    )
  within = (shape[0] // slices, *shape[1:])
  across = (slices, *(1,) * (len(shape) - 1))
  make = functools.partial(
      mesh_utils.create_hybrid_device_mesh,
      within,
      across,
      devices,
      process_is_granule=by_process,
  )
  with contextlib.suppress(NotImplementedError):
    return make()
  return make(allow_split_physical_axes=True)


def alone(device: jax.Device | None = None) -> Mesh:
  """Returns a mesh of one device: the first, if none is given."""
  return make({}, [device or jax.devices()[0]])


def whole_rows(mesh: Mesh) -> Mesh:
  """Returns the same devices with those along sequence put along data.

  Judging and sampling read whole rows: they split nothing over sequence.
  """
  data, fsdp, tensor, sequence = mesh.devices.shape
  if sequence == 1:
    return mesh
  grid = np.moveaxis(mesh.devices, -1, 1)
  grid = grid.reshape(data * sequence, fsdp, tensor, 1)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def rows(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a batch: its first axis over data and fsdp."""
  return NamedSharding(mesh, ROWS)


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def num_row_shards(mesh: Mesh) -> int:
  """Returns how many ways a batch's rows are split."""
  return mesh.shape['data'] * mesh.shape['fsdp']


def num_parts(mesh: Mesh | None) -> int:
  """Returns how many ways each row of a training batch is split."""
  return mesh.shape.get('sequence', 1) if mesh else 1
