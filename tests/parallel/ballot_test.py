"""The largest number holds for all, on devices of several slices as well."""

import jax

from palign_jax.parallel import ballot as ballot_lib
from tests.parallel import mesh_test


def test_alone_a_number_is_itself():
  assert ballot_lib.Ballot().cast(3) == 3


def test_of_all_devices(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert int(ballot_lib.Ballot().cast(3)) == 3


def test_devices_of_several_slices():
  devices = mesh_test.pod(2)
  mesh = ballot_lib.line(devices)
  assert list(mesh.devices) == devices
  assert mesh.axis_names == ('all',)
  assert mesh.axis_types == (jax.sharding.AxisType.Auto,)
