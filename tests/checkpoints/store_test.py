"""What is restored is what was saved, and nothing else passes for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.checkpoints import store
from palign_jax.core import errors


def state(value=1.0, size=16):
  return {'params': {'w': jnp.full((size, 8), value, jnp.float32)}}


def save(directory, *steps):
  with store.CheckpointStore(directory, keep=9) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(float(step)), {'next': step * 10})


def restore(directory, like, step=None):
  with store.CheckpointStore(directory, keep=9) as checkpoints:
    return checkpoints.restore(like, step)


def spoil(directory):
  """Overwrites every file of the arrays, as a broken disk might."""
  for file in sorted(directory.rglob('*')):
    if file.is_file() and 'metadata' not in file.name.lower():
      file.write_bytes(b'')


def test_nothing_yet(tmp_path):
  assert restore(tmp_path, state()) is None


def test_the_latest_or_the_one_asked_for(tmp_path):
  save(tmp_path, 3, 5)
  latest = restore(tmp_path, state())
  assert (latest.step, dict(latest.data)) == (5, {'next': 50})
  np.testing.assert_array_equal(latest.state['params']['w'], 5.0)
  third = restore(tmp_path, state(), 3)
  np.testing.assert_array_equal(third.state['params']['w'], 3.0)


def test_only_the_newest_are_kept(tmp_path):
  with store.CheckpointStore(tmp_path, keep=2) as checkpoints:
    for step in (1, 2, 3):
      checkpoints.save(step, state(), {})
  assert sorted(p.name for p in tmp_path.iterdir()) == ['2', '3']


def test_reshards(tmp_path):
  save(tmp_path, 1)
  mesh = jax.make_mesh((8,), ('fsdp',))
  spec = jax.sharding.PartitionSpec('fsdp')
  sharding = jax.sharding.NamedSharding(mesh, spec)
  got = restore(tmp_path, jax.device_put(state(0.0), sharding))
  assert got.state['params']['w'].sharding == sharding
  np.testing.assert_array_equal(got.state['params']['w'], 1.0)


def test_another_model_is_refused(tmp_path):
  save(tmp_path, 1)
  message = r'params/w float32\[12, 8\], params/w float32\[16, 8\]'
  with pytest.raises(errors.CheckpointError, match=message):
    restore(tmp_path, state(size=12))


def test_an_absent_step(tmp_path):
  save(tmp_path, 1, 2)
  with pytest.raises(errors.CheckpointError, match=r'step 7; it has \[1, 2\]'):
    restore(tmp_path, state(), 7)


def test_a_broken_checkpoint_is_passed_over_and_written_anew(tmp_path):
  save(tmp_path, 1, 2)
  spoil(tmp_path / '2')
  with store.CheckpointStore(tmp_path, keep=9) as checkpoints:
    assert checkpoints.restore(state()).step == 1
    checkpoints.save(2, state(22.0), {})
  got = restore(tmp_path, state())
  assert got.step == 2
  np.testing.assert_array_equal(got.state['params']['w'], 22.0)


def test_none_can_be_read(tmp_path):
  save(tmp_path, 1)
  spoil(tmp_path / '1')
  with pytest.raises(errors.CheckpointError, match=r'none of .*\[1\] can be'):
    restore(tmp_path, state())
