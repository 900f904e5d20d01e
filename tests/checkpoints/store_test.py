"""What is restored is what was saved, and nothing else passes for it."""

from concurrent import futures
import gc
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.checkpoints import store
from palign_jax.core import errors
from tests import fakes, processes
from tests.checkpoints import saver


def state(value=1.0, size=16):
  return {'params': {'w': jnp.full((size, 8), value, jnp.float32)}}


def save(directory, *steps):
  with store.CheckpointStore(directory, keep=9) as checkpoints:
    for step in steps:
      checkpoints.save(step, state(float(step)), {'next': step * 10})


def restore(directory, like, step=None):
  with store.CheckpointStore(directory, keep=9) as checkpoints:
    return checkpoints.restore(like, step)


def files(directory):
  return sorted(p for p in directory.rglob('*') if p.is_file())


def spoil(directory):
  """Overwrites every file, as a broken disk might."""
  for file in files(directory):
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
  message = (
      r'params/w float32\[12, 8\], params/w float32\[16, 8\]. Set'
      r' config.student.path and config.sft \(method, rank, targets,'
      rf' optim.name\) as they were, or remove {tmp_path} to start anew'
  )
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


def truncated(file):
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    'empty': lambda file: file.write_bytes(b''),
    'truncated': truncated,
    'lost': lambda file: file.unlink(),
}


# Orbax leaves reads behind when one has failed.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('damage', DAMAGES)
def test_whichever_file_is_broken_a_whole_checkpoint_is_found(tmp_path, damage):
  """The newest, if that file does not matter to it, or the one before."""
  good, bad = tmp_path / 'good', tmp_path / 'bad'
  # So much noise has a file of its own.
  large = lambda step: {'w': saver.state(step)['params']['w']}
  with store.CheckpointStore(good, keep=9) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, large(step), {'next': step * 10})
  found = {}
  for file in files(good / '2'):
    shutil.copytree(good, bad)
    DAMAGES[damage](bad / file.relative_to(good))
    got = restore(bad, large(0))
    assert dict(got.data) == {'next': got.step * 10}, file
    np.testing.assert_array_equal(got.state['w'], large(got.step)['w'])
    found[str(file.relative_to(good / '2'))] = got.step
    shutil.rmtree(bad)
  assert found['_CHECKPOINT_METADATA'] == found['state/_METADATA'] == 1
  assert found['state/manifest.ocdbt'] == 1
  (arrays,) = [name for name in found if 'ocdbt.process_0/d/' in name]
  assert found[arrays] == 1
  gc.collect()


def test_without_the_data_s_position_it_is_broken(tmp_path, monkeypatch):
  save(tmp_path, 1)
  with monkeypatch.context() as patch:
    patch.setattr(store, '_DATA', 'elsewhere')
    save(tmp_path, 2)
  assert restore(tmp_path, state()).step == 1
  with pytest.raises(errors.CheckpointError, match='where its data stood is l'):
    restore(tmp_path, state(), 2)


def test_none_can_be_read(tmp_path):
  save(tmp_path, 1)
  spoil(tmp_path / '1')
  with pytest.raises(errors.CheckpointError, match=r'none of .*\[1\] can be'):
    restore(tmp_path, state())


@pytest.mark.slow
def test_killed_at_any_point_of_a_save(tmp_path):
  """One life after another, each dies a little later than the one before."""
  directory = tmp_path / 'checkpoints'
  for _ in range(saver.KEEP + 1):
    assert saver.start(directory) == 0
  count = int((tmp_path / 'checkpoints.count').read_text())
  assert count > 15
  lives = [dict(kill_at=n) for n in range(1, count + 1)]
  lives += [dict(num_files=n) for n in range(1, 9)]
  codes = {saver.start(directory, **life) for life in lives}
  assert codes <= {-signal.SIGKILL, 0}
  assert -signal.SIGKILL in codes
  assert saver.start(directory) == 0  # It checks what it restores.
  steps = [int(x) for x in (tmp_path / 'checkpoints.steps').read_text().split()]
  assert len(steps) == saver.KEEP + 1 + len(lives) + 1
  # What one life had saved the next goes on from: never less.
  assert set(np.diff(steps)) == {0, 1}
  names = sorted(int(p.name) for p in directory.iterdir())
  assert names == [steps[-1], steps[-1] + 1]


def test_a_full_disk_is_one_line_and_harms_nothing(tmp_path):
  """A bound on the size of files stands for the disk."""
  save(tmp_path, 1)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  message = r'a checkpoint cannot be written \(.*mend this .is there room'
  resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
  try:
    with pytest.raises(errors.CheckpointError, match=message) as e:
      save(tmp_path, 2)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert '\n' not in str(e.value)
  assert restore(tmp_path, state()).step == 1
  save(tmp_path, 2)
  assert restore(tmp_path, state()).step == 2


def test_what_another_host_cannot_read_is_not_gone_on_from(tmp_path):
  save(tmp_path / 'good', 1, 2)
  save(tmp_path / 'bad', 1, 2)
  spoil(tmp_path / 'bad' / '2')

  def host(peers, name):
    with store.CheckpointStore(tmp_path / name, keep=9, peers=peers) as one:
      return one.restore(state()).step

  with futures.ThreadPoolExecutor(2) as pool:
    steps = pool.map(host, fakes.Peers.team(2), ['good', 'bad'])
    assert list(steps) == [1, 1]


@pytest.mark.slow
def test_two_hosts_one_of_which_cannot_read_the_newest(tmp_path):
  """Neither waits for Orbax to give up, and they save together again."""
  save(tmp_path / 'good', 1, 2)
  shutil.copytree(tmp_path / 'good', tmp_path / 'bad')
  for file in files(tmp_path / 'bad' / '2' / 'state'):
    if 'metadata' not in file.name.lower():
      file.write_bytes(b'')
  start = time.monotonic()
  module = 'tests.checkpoints.reader'
  for code, output in processes.finish(
      processes.start(2, module, str(tmp_path), devices=1)
  ):
    assert code == 0, output
    assert 'went on from 1' in output.splitlines(), output
  assert time.monotonic() - start < 250
  assert restore(tmp_path / 'good', state()).step == 2
