"""Names of slices, and chips as their makers describe them."""

import importlib.util

import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.planning import chips, topology


def test_a_name_is_a_chip_and_a_shape():
  chip, sizes = topology.parse('v5p:4x4x8')
  assert (chip.name, sizes) == ('v5p', (4, 4, 8))
  assert topology.parse('v5e:4x4')[1] == (4, 4)


@pytest.mark.parametrize(
    'name, message',
    [
        ('v5p', 'give chip and shape, as in v5e:4x4'),
        ('v5p-128', 'give chip and shape'),
        ('v3:4x4', 'the chips are v4, v5e, v5p, v6e, tpu7x'),
        ('v5e:4', 'give chip and shape'),
        ('v5e:4x4x4', 'a slice of v5e has 2 dimensions, as in v5e:4x4'),
        ('v5p:4x4', 'a slice of v5p has 3 dimensions, as in v5p:4x4x4'),
    ],
)
def test_a_name_that_is_none(name, message):
  with pytest.raises(errors.ConfigError, match=message):
    topology.parse(name)


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match='requirements-tpu.txt'):
    topology.describe('v5e:2x2')


@pytest.mark.parametrize(
    'name, num',
    [
        ('v4:2x2x1', 4),  # Both cores of a chip are one device.
        ('v5e:2x2', 4),
        ('v5p:4x4x4', 64),
        ('v6e:8x8', 64),
        ('tpu7x:2x2x1', 8),  # Two devices a chip.
    ],
)
def test_a_slice_has_its_devices(name, num):
  pytest.importorskip('libtpu')
  found = topology.describe(name)
  assert len(found.devices) == num == found.num_chips * found.chip.devices
  assert found.devices[0].platform == 'tpu'


@pytest.mark.parametrize('num_slices', [1, 2])
def test_a_mesh_may_divide_an_axis_of_the_torus(num_slices):
  pytest.importorskip('libtpu')
  found = topology.describe('v6e:8x8', num_slices)
  sizes = {'data': num_slices, 'fsdp': 32, 'sequence': 2}
  mesh = mesh_lib.make(sizes | {'dcn_data': num_slices}, found.devices)
  assert mesh.devices.shape == (num_slices, 32, 1, 2)
  # Those that share a row's tokens are neighbours.
  for pair in mesh.devices.reshape(-1, 2):
    one, two = (np.array(device.coords) for device in pair)
    assert np.abs(one - two).sum() == 1


def test_a_shape_that_is_not_made():
  pytest.importorskip('libtpu')
  with pytest.raises(errors.ConfigError, match='libtpu knows no such slice'):
    topology.describe('v5e:3x3')


def test_a_device_may_use_most_of_its_own_memory():
  for chip in chips.CHIPS.values():
    assert 0.95 < chip.usable * chip.devices / chip.hbm < 1.01
