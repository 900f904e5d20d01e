"""Stages that divide their rows use the part of the mesh that a host has."""

import dataclasses

import jax
import pytest

from palign_jax.core import errors
from palign_jax.parallel import local, mesh as mesh_lib


@pytest.mark.parametrize(
    'sizes, hosts, want',
    [
        ((1, 64, 1), 16, (1, 4, 1)),
        ((16, 4, 1), 16, (1, 4, 1)),
        ((8, 8, 1), 16, (1, 4, 1)),
        ((2, 4, 8), 8, (1, 1, 8)),
        ((6, 1, 4), 3, (2, 1, 4)),
        ((2, 1, 8), 4, (1, 1, 8)),  # Does not come out even.
    ],
)
def test_row_axes_shrink_by_the_number_of_hosts(sizes, hosts, want):
  names = ('data', 'fsdp', 'tensor')
  short = local.shorten(dict(zip(names, sizes, strict=True)), hosts)
  assert tuple(short.values()) == want


@dataclasses.dataclass(frozen=True)
class Device:
  """What the arrangement of devices looks at."""

  id: int
  process_index: int
  platform: str = 'cpu'  # They lie in order.
  device_kind: str = 'none that is known'


HOSTS = [Device(i, process_index=i // 4) for i in range(8)]


def test_alone_it_is_the_whole():
  whole = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert local.num_hosts(whole) == 1
  assert local.mesh(whole) is whole


def test_of_one_host(monkeypatch):
  whole = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2}, HOSTS)
  assert local.num_hosts(whole) == 2
  mesh = local.mesh(whole, 1)
  assert mesh.devices.shape == (1, 2, 2, 1)
  assert list(mesh.devices.flat) == HOSTS[4:]
  monkeypatch.setattr(jax, 'process_index', lambda: 1)
  assert local.mesh(whole) is mesh


def test_a_tensor_axis_beyond_a_host():
  whole = mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 8}, HOSTS)
  with pytest.raises(errors.ConfigError, match='tensor must divide 4 and') as e:
    local.mesh(whole)
  assert '\n' not in str(e.value)


def test_rows_are_those_of_a_host():
  mesh = local.mesh(mesh_lib.make({'fsdp': 4, 'tensor': 2}, HOSTS), 0)
  local.check_rows(6, mesh)
  with pytest.raises(errors.ConfigError, match='num_rows is 7, .* over 2 gro'):
    local.check_rows(7, mesh)
