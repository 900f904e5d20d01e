"""A hang or a crash costs the item that caused it, and nothing else."""

import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from palign_jax.grading import workers

# A module of its own: workers import their function by its name.
FAKE = """
import fcntl, os

held = []

def work(item):
  if item.startswith('/'):
    held.append(open(item))
    fcntl.flock(held[-1], fcntl.LOCK_EX)
  if item == 'hang':
    while True:
      pass
  if item == 'hang in C':
    len(str(7 ** 10 ** 9))
  if item == 'die':
    os._exit(3)
  if item == 'eat':
    bytearray(1 << 40)
  if item == 'print':
    print('not part of the answer', flush=True)
  return item * 2, os.getpid()
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
  (tmp_path / 'fake_work.py').write_text(FAKE)
  monkeypatch.syspath_prepend(tmp_path)
  import fake_work

  yield fake_work.work
  del sys.modules['fake_work']


def test_every_item_gets_its_result(work):
  with workers.Workers(work, num_workers=2, limit_s=20) as pool:
    results = dict(pool.run([str(i) for i in range(50)] + ['print']))
    again = dict(pool.run(['a']))
    assert dict(pool.run([])) == {}
  assert [results[i][0] for i in range(50)] == [f'{i}{i}' for i in range(50)]
  assert results[50][0] == 'printprint'
  used = {pid for _, pid in results.values()}
  assert len(used) <= 2
  assert len(used | {again[0][1]}) <= 2  # Kept between calls.


@pytest.mark.parametrize(
    'item, how',
    [
        ('hang', 'timeout'),
        ('hang in C', 'timeout'),
        ('die', 'crash'),
        ('eat', 'crash'),
    ],
)
def test_one_item_is_lost(work, item, how):
  with workers.Workers(work, num_workers=1, limit_s=1) as pool:
    results = dict(pool.run(['a', item, 'b', item, 'c']))
  assert results[1] == results[3] == workers.Lost(how)
  assert [results[i][0] for i in (0, 2, 4)] == ['aa', 'bb', 'cc']
  assert len({results[i][1] for i in (0, 2, 4)}) == 3  # Workers were replaced.


def test_a_worker_killed_between_items_loses_at_most_the_next(work):
  with workers.Workers(work, num_workers=1, limit_s=20) as pool:
    ((_, (_, pid)),) = pool.run(['a'])
    os.kill(pid, signal.SIGKILL)
    results = dict(pool.run(['b', 'c']))
  assert results[0] == workers.Lost('crash')
  assert results[1][0] == 'cc'


def test_no_worker_outlives_its_pool(work):
  with workers.Workers(work, num_workers=2, limit_s=60) as pool:
    run = pool.run(['a', 'hang'])
    _, (_, pid) = next(run)
  with pytest.raises(ProcessLookupError, match='No such process'):
    os.kill(pid, 0)


def test_a_run_given_up_leaves_nothing_for_the_next(work):
  with workers.Workers(work, num_workers=2, limit_s=60) as pool:
    run = pool.run(['a', 'hang'])
    next(run)
    run.close()
    assert [result[0] for _, result in pool.run(['b'])] == ['bb']


def test_what_cannot_start_says_so(tmp_path, monkeypatch, work):
  (tmp_path / 'fake_work.py').write_text('raise ImportError("not here")')
  with workers.Workers(work, num_workers=1, limit_s=20) as pool:
    with pytest.raises(RuntimeError, match='does not start: crash'):
      list(pool.run(['a']))


def test_workers_end_when_their_parent_is_killed(tmp_path, work):
  script = f"""
import time
from palign_jax.grading import workers
import fake_work
pool = workers.Workers(fake_work.work, num_workers=1, limit_s=60)
list(pool.run([{str(tmp_path / 'lock')!r}]))
print('locked', flush=True)
time.sleep(60)
"""
  lock = open(tmp_path / 'lock', 'w')
  parent = subprocess.Popen(
      [sys.executable, '-c', script],
      stdout=subprocess.PIPE,
      env=os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  assert parent.stdout.readline() == b'locked\n'
  with pytest.raises(BlockingIOError, match='unavailable'):
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  parent.kill()
  parent.communicate()
  for _ in range(100):
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
      break
    except BlockingIOError:
      time.sleep(0.1)
  else:
    pytest.fail('the worker still runs')
  lock.close()
