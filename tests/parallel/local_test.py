"""Stages that divide their rows use the part of the mesh that a host has."""

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


def test_alone_it_is_the_whole():
  whole = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  assert local.mesh(whole) is whole


def test_of_one_host(monkeypatch):
  whole = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_devices', lambda: jax.devices()[4:])
  monkeypatch.setattr(jax, 'local_device_count', lambda: 4)
  mesh = local.mesh(whole)
  assert dict(mesh.shape) == {'data': 1, 'fsdp': 2, 'tensor': 2}
  assert set(mesh.devices.flat) == set(jax.devices()[4:])


def test_a_tensor_axis_beyond_a_host(monkeypatch):
  whole = mesh_lib.make({'data': 1, 'fsdp': 1, 'tensor': 8})
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 4)
  with pytest.raises(errors.ConfigError, match='tensor must divide 4 and') as e:
    local.mesh(whole)
  assert '\n' not in str(e.value)
