"""The devices of slices that are not here: libtpu describes them."""

from collections.abc import Sequence
import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from palign_jax.core import errors
from palign_jax.planning import chips

_NAME = re.compile(r'([a-z]+\d+[a-z]*):(\d+(?:x\d+){1,2})')
# JAX on a TPU VM takes both cores of a v4 chip for one device.
_OPTIONS = {'v4': {'chip_config_name': 'megacore'}}
# libtpu is not to look for a TPU or its neighbours, nor to mind others.
_ENVIRONMENT = {
    'TPU_SKIP_MDS_QUERY': '1',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TF_CPP_MIN_LOG_LEVEL': '3',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice, or several that a data-centre network joins.

  Attributes:
    name: As on the command line, e.g. 'v5p:4x4x4'.
    chip: What it is made of.
    sizes: Chips along each dimension of a slice.
    devices: JAX's descriptions of all devices.
    num_slices: How many slices there are.
  """

  name: str
  chip: chips.Chip
  sizes: tuple[int, ...]
  devices: Sequence[Any]
  num_slices: int = 1

  @property
  def num_chips(self) -> int:
    """Chips of all slices."""
    return math.prod(self.sizes) * self.num_slices

  @property
  def title(self) -> str:
    """What to call it."""
    many = self.num_slices > 1
    return f'{self.num_slices} slices of {self.name}' if many else self.name


def parse(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
  """Returns the chip and the sizes that a topology's name says.

  Raises:
    ConfigError: If it is no such name.
  """
  match = _NAME.fullmatch(name)
  known = ', '.join(chips.CHIPS)
  if not match or match[1] not in chips.CHIPS:
    raise errors.ConfigError(
        f'--topology={name}: give chip and shape, as in v5e:4x4 or v5p:4x4x4;'
        f' the chips are {known}.'
    )
  chip, sizes = chips.CHIPS[match[1]], tuple(map(int, match[2].split('x')))
  if len(sizes) != chip.dims:
    raise errors.ConfigError(
        f'--topology={name}: a slice of {chip.name} has {chip.dims} dimensions,'
        f' as in {chip.name}:{"x".join(["4"] * chip.dims)}.'
    )
  return chip, sizes


def describe(name: str, num_slices: int = 1) -> Topology:
  """Returns the slices of a name.

  Args:
    name: Of one of them.
    num_slices: How many there are.

  Raises:
    ConfigError: If the name is wrong, or libtpu is not installed.
  """
  chip, sizes = parse(name)
  if importlib.util.find_spec('libtpu') is None:
    raise errors.ConfigError(
        'libtpu, which compiles for TPUs, is not installed; run pip install -r'
        ' requirements-tpu.txt.'
    )
  for variable, value in _ENVIRONMENT.items():
    os.environ.setdefault(variable, value)
  try:
    found = topologies.get_topology_desc(
        platform='tpu',
        topology_name=name,
        num_slices=num_slices,
        **_OPTIONS.get(chip.name, {}),
    )
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).partition('\n')[0].rstrip('.')
    raise errors.ConfigError(
        f'--topology={name}: libtpu knows no such slice ({reason}).'
    ) from e
  return Topology(name, chip, sizes, tuple(found.devices), num_slices)


@functools.cache
def of_one_host(topology: Topology) -> Topology:
  """Returns a slice that is what one host of this one has.

  For devices that are but a part of a slice libtpu 0.0.51 cannot compile every
  program ('Unexpected device_id 5 [...] target has 4 device_id').
  """
  first = topology.devices[0].process_index
  own = [d.coords for d in topology.devices if d.process_index == first]
  sizes = [len(set(column)) for column in zip(*own, strict=True)]
  sizes = sizes[: topology.chip.dims]
  return describe(f'{topology.chip.name}:{"x".join(map(str, sizes))}')
