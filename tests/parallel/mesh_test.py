"""Sizes must give the devices; slices lie along data."""

import dataclasses

import jax
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Device:
  """What the arrangement of devices looks at."""

  id: int
  slice_index: int
  process_index: int
  platform: str = 'cpu'  # Its arrangement within a slice is in order.
  device_kind: str = 'none that is known'


def pod(slices, each=4):
  return [
      Device(i, i // each, process_index=i // 2) for i in range(slices * each)
  ]


def test_one_size_may_be_left_open_and_others_out():
  mesh = mesh_lib.make({'fsdp': -1, 'tensor': 2})
  assert dict(mesh.shape) == {
      'data': 1,
      'fsdp': 4,
      'tensor': 2,
      'sequence': 1,
  }
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'sequence': -1})
  assert mesh_lib.num_row_shards(mesh) == 4
  assert mesh_lib.num_parts(mesh) == 2
  assert mesh_lib.num_parts(None) == 1


@pytest.mark.parametrize(
    'sizes', [(3, 1, 1), (-1, 3, 1), (-1, -1, 1), (0, 8, 1), (16, 1, 1)]
)
def test_sizes_must_give_the_devices(sizes):
  sizes = dict(zip(mesh_lib.AXES, sizes, strict=False))
  with pytest.raises(errors.ConfigError, match='there are 8; the sizes must'):
    mesh_lib.make(sizes)


def test_axes_are_those_of_the_mesh():
  with pytest.raises(errors.ConfigError, match="needs .'data', 'fsdp'"):
    mesh_lib.make({'model': 8})


def test_some_devices():
  mesh = mesh_lib.make({'fsdp': -1}, jax.devices()[:2])
  assert mesh.size == 2
  assert mesh_lib.alone(jax.devices()[3]).devices.flat[0] == jax.devices()[3]


def test_slices_lie_along_data():
  grid = mesh_lib.over_slices((4, 1, 2, 1), 2, pod(2))
  assert grid.shape == (4, 1, 2, 1)
  of = np.vectorize(lambda d: d.slice_index)(grid)[:, 0, :, 0]
  assert of.tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_hosts_without_slices_count_as_slices():
  devices = [dataclasses.replace(d, slice_index=0) for d in pod(1, each=8)]
  grid = mesh_lib.over_slices((4, 2, 1, 1), 4, devices)
  of = np.vectorize(lambda d: d.process_index)(grid)[:, :, 0, 0]
  assert of.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize(
    'shape, slices, message',
    [
        ((4, 2, 1, 1), 4, 'dcn_data is 4, .* lie in 2 slices; set dcn_data to'),
        ((1, 8, 1, 1), 2, 'config.mesh.data 1, .* and data to a multiple'),
    ],
)
def test_slices_are_counted(shape, slices, message):
  with pytest.raises(errors.ConfigError, match=message):
    mesh_lib.over_slices(shape, slices, pod(2))


@pytest.mark.parametrize('slices', [2, 4])  # As many as hosts, at last.
def test_hosts_of_one_tpu_slice_are_no_slices(slices):
  devices = [
      dataclasses.replace(d, platform='tpu', slice_index=0)
      for d in pod(1, each=8)
  ]
  message = f'dcn_data is {slices}, .* lie in 1 slices; set dcn_data to 1,'
  with pytest.raises(errors.ConfigError, match=message):
    mesh_lib.over_slices((4, 2, 1, 1), slices, devices)


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])  # A slice, a node each.
def test_slices_of_a_pod_are_not_overlooked(platform):
  devices = [dataclasses.replace(d, platform=platform) for d in pod(2)]
  with pytest.raises(errors.ConfigError, match='is 1 .* 2 slices; set it to 2'):
    mesh_lib.make({'fsdp': 8}, devices)


def test_more_slices_than_there_are():
  with pytest.raises(errors.ConfigError, match='lie in 1 hosts'):
    mesh_lib.make({'data': 8, 'dcn_data': 2})


def test_whole_rows_take_the_same_devices():
  mesh = mesh_lib.make({'data': 2, 'tensor': 2, 'sequence': 2})
  whole = mesh_lib.whole_rows(mesh)
  assert dict(whole.shape) == {
      'data': 4,
      'fsdp': 1,
      'tensor': 2,
      'sequence': 1,
  }
  # What is on one device of tensor stays together.
  for t in range(2):
    before, after = mesh.devices[:, 0, t], whole.devices[:, 0, t]
    assert set(before.flat) == set(after.flat)
  assert mesh_lib.whole_rows(whole) is whole
