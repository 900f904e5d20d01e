"""Bounds are those of a chip's page, and of the torus that a mesh lies on."""

import itertools
from unittest import mock

from jax.sharding import Mesh
import numpy as np
import pytest

from palign_jax.planning import roofline, topology


def slice_of(name: str, *shape: int):
  """A slice and a mesh (data, fsdp, tensor) over it, in plain order."""
  chip, sizes = topology.parse(name)
  places = itertools.product(*map(range, reversed(sizes)), range(chip.devices))
  devices = []
  for *at, _ in places:
    coords = (*reversed(at), *(0,) * (3 - len(at)))
    devices.append(mock.Mock(spec=['coords'], coords=coords))
  grid = np.empty(len(devices), object)
  grid[:] = devices
  mesh = mock.Mock(spec=Mesh, devices=grid.reshape(shape))
  mesh.axis_names = 'data', 'fsdp', 'tensor'
  return topology.Topology(name, chip, sizes, devices), mesh


@pytest.mark.parametrize(
    'name, shape, axes, links',
    [
        ('v5e:4x4', (1, 4, 4), 'fsdp', 1),  # A line: no slice of 4 closes.
        ('v5e:4x4', (1, 16, 1), 'fsdp', 2),
        ('v5e:16x16', (1, 16, 16), 'fsdp', 2),  # A ring.
        ('v5e:16x16', (1, 16, 16), 'fsdp+tensor', 4),
        ('v5e:16x16', (1, 32, 8), 'tensor', 1),  # Half of a ring.
        ('v5p:4x4x4', (1, 64, 1), 'fsdp', 6),
        ('v5p:4x4x4', (4, 4, 4), 'data', 2),
        ('v5p:2x2x2', (2, 4, 1), 'fsdp', 2),
        ('tpu7x:4x4x4', (1, 64, 2), 'fsdp', 3),  # Two devices share links.
        ('tpu7x:4x4x4', (1, 64, 2), 'tensor', 6),  # From die to die.
    ],
)
def test_an_axis_has_the_links_of_its_dimensions(name, shape, axes, links):
  where, mesh = slice_of(name, *shape)
  got = roofline.bandwidth(where, mesh, axes)
  assert got == pytest.approx(links * where.chip.link)


def test_the_slowest_part_is_the_limit():
  where, mesh = slice_of('v5e:4x4', 1, 4, 4)
  bound = lambda **work: roofline.bound(
      where,
      mesh,
      **{'flops': 0.0, 'hbm_bytes': 0.0, 'collective_bytes': {}} | work,
  )
  second = bound(flops=197e12)
  assert (second.seconds, second.limit) == (pytest.approx(1), 'compute')
  second = bound(hbm_bytes=819e9, flops=1e12)
  assert (second.seconds, second.limit) == (pytest.approx(1), 'hbm')
  sent = {'fsdp': 50 * 10**9, 'tensor': 40 * 10**9}
  second = bound(collective_bytes=sent, hbm_bytes=8e9)
  assert (second.seconds, second.limit) == (pytest.approx(1), 'ici:fsdp')


def test_half_a_chip_has_half_of_its_speed():
  where, mesh = slice_of('tpu7x:2x2x1', 1, 8, 1)
  got = roofline.bound(
      where, mesh, flops=2307e12 / 2, hbm_bytes=7380e9, collective_bytes={}
  )
  assert (got.compute, got.hbm) == (pytest.approx(1), pytest.approx(2))
