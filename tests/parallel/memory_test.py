"""What a device may use is found out, or one line says how to name it."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from palign_jax.core import errors
from palign_jax.parallel import memory, mesh as mesh_lib

GIB = memory.GIB
UNLIMITED = '9223372036854771712'  # As version 1 writes it.


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
  """Puts files of both versions in the place of the machine's."""
  (tmp_path / 'memory').mkdir()
  files = tmp_path / 'memory.max', tmp_path / 'memory/memory.limit_in_bytes'
  monkeypatch.setattr(memory, '_CGROUPS', str(tmp_path))
  monkeypatch.setattr(memory, '_OWN', str(tmp_path / 'own'))
  monkeypatch.setattr(memory.os, 'sysconf', lambda name: 2**17)  # 16 GiB.

  def cgroups(*texts):
    for file, text in zip(files, texts, strict=True):
      file.unlink(missing_ok=True)
      if text is not None:
        file.write_text(text + '\n')

  return cgroups


@pytest.mark.parametrize(
    'texts, gib',
    [
        ((None, None), 16),
        (('max', None), 16),
        ((str(4 * GIB), None), 4),
        ((str(64 * GIB), None), 16),  # More than there is.
        ((None, str(3 * GIB)), 3),
        ((None, UNLIMITED), 16),
        (('max', str(2 * GIB)), 2),
        ((str(2 * GIB), UNLIMITED), 2),
        (('', ''), 16),
    ],
)
def test_a_cpu_has_its_share_of_what_the_cgroup_allows(cgroups, texts, gib):
  cgroups(*texts)
  for num in (1, 8):
    devices = jax.devices()[:num]
    mesh = mesh_lib.make({'data': num}, devices)
    assert memory.budget(0.0, mesh) == int(0.9 * gib * GIB / num)


@pytest.mark.parametrize(
    'line, file',
    [
        ('0::/job/step', 'job/step/memory.max'),
        ('0::/job/step', 'job/memory.max'),
        ('4:cpu,memory:/job', 'memory/job/memory.limit_in_bytes'),
    ],
)
def test_the_limit_of_a_cgroup_below_the_root(cgroups, tmp_path, line, file):
  cgroups('max', UNLIMITED)
  (tmp_path / 'own').write_text(f'1:name=systemd:/x\n{line}\n')
  (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
  (tmp_path / file).write_text(str(5 * GIB))
  assert memory.budget(0.0, mesh_lib.make({}, jax.devices()[:1])) == int(
      0.9 * 5 * GIB
  )


def test_this_machine_s_own_limit():
  mesh = mesh_lib.make({'data': 8, 'fsdp': 1, 'tensor': 1})
  assert 2**24 < memory.budget(0.0, mesh) < 2**44


def mesh_of(stats):
  """A mesh of an accelerator that is not here."""
  device = mock.Mock(platform='gpu', device_kind='GPU of the future')
  device.memory_stats.return_value = stats
  mesh = mock.Mock(spec=jax.sharding.Mesh)
  mesh.local_devices, mesh.is_multi_process = [device], False
  return mesh


def test_an_accelerator_tells_what_it_has():
  assert memory.budget(0.0, mesh_of({'bytes_limit': 10 * GIB})) == 9 * GIB


@pytest.mark.parametrize('stats', [None, {}, {'bytes_in_use': 7}])
def test_or_does_not_tell(stats):
  with pytest.raises(errors.ConfigError) as e:
    memory.budget(0.0, mesh_of(stats))
  assert 'config.compute.memory_gib is 0, and GPU of the future' in str(e.value)
  assert '\n' not in str(e.value)
  assert memory.budget(1.5, mesh_of(stats)) == 3 * GIB // 2  # As configured.


def test_bytes_of_arrays_on_one_device():
  mesh = mesh_lib.make({'data': 4, 'fsdp': 1, 'tensor': 2})
  whole = jnp.zeros((8, 6), jnp.float32)
  rows = jax.device_put(whole, mesh_lib.rows(mesh))
  shape = jax.ShapeDtypeStruct(
      (8, 6), jnp.bfloat16, sharding=mesh_lib.replicated(mesh)
  )
  tree = {'whole': whole, 'rows': (rows, shape)}
  assert memory.per_device(tree) == 8 * 6 * 4 + 2 * 6 * 4 + 8 * 6 * 2
  assert memory.per_device(jax.ShapeDtypeStruct((3,), jnp.int8)) == 3


def test_a_program_needs_what_goes_in_and_out_but_what_is_donated_once():
  x = jnp.zeros((256, 256), jnp.float32)
  add = lambda x: x + jnp.float32(1)
  apart = jax.jit(add).lower(x).compile()
  in_place = jax.jit(add, donate_argnums=0).lower(x).compile()
  assert 0 <= memory.needed(apart) - 2 * x.nbytes < 4096
  assert 0 <= memory.needed(in_place) - x.nbytes < 4096


@pytest.mark.parametrize(
    'text, is_so',
    [
        ('RESOURCE_EXHAUSTED: Failed to allocate 7 bytes', True),
        ('Out of memory while trying to allocate', True),
        ('INVALID_ARGUMENT: shapes', False),
    ],
)
def test_lack_of_memory_is_told_apart(text, is_so):
  assert memory.is_exhausted(RuntimeError(text)) == is_so
