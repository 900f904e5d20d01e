"""Those steps are traced that were asked for, and training is the same."""

import pathlib

from absl import logging
from etils import epath
import jax
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.training import profiling
from tests import fakes, stores
from tests.training import resuming


def run(workdir, num_steps, profiler=None):
  mesh = fakes.one_device()
  return resuming.run(workdir, num_steps, mesh, profiler=profiler)


def traced(file):
  """The numbers of the steps in a trace."""
  steps = set()
  for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
    for line in plane.lines:
      for event in line.events:
        if event.name == 'train':
          steps.add(dict(event.stats)['step_num'])
  return steps


def files(folder):
  return sorted(pathlib.Path(folder).glob('plugins/profile/*/*.xplane.pb'))


@pytest.fixture
def said(monkeypatch):
  """What is logged."""
  lines = []

  def keep(text, *args, **_):  # Orbax logs what is no text.
    lines.append(str(text) % args if args else str(text))

  monkeypatch.setattr(logging, 'info', keep)
  monkeypatch.setattr(logging, 'warning', keep)
  return lines


def test_just_these_steps_and_nothing_else_changes(tmp_path, said):
  want = run(tmp_path / 'plain', 5)
  folder = tmp_path / 'profile'
  got = run(tmp_path / 'traced', 5, profiling.Profiler(folder, (2, 3)))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  (file,) = files(folder)
  assert traced(file) == {2, 3}
  (line,) = [line for line in said if line.startswith('Steps 2 to 3 are')]
  assert f'traced in {folder}; ' in line
  assert f'xprof --port 8791 {folder}' in line


def test_a_run_that_ends_before_the_trace(tmp_path, said):
  run(tmp_path, 3, profiling.Profiler(tmp_path / 'profile', (3, 9)))
  (file,) = files(tmp_path / 'profile')
  assert traced(file) == {3}
  assert [line for line in said if line.startswith('Steps 3 to 3 are traced')]


def test_data_that_ends_within_the_trace(tmp_path, monkeypatch):
  class Short(resuming.Batches):

    def __iter__(self):
      for number, batch in enumerate(super().__iter__(), 1):
        if number == 3:
          return
        yield batch

  monkeypatch.setattr(resuming, 'Batches', Short)
  with pytest.raises(errors.DataError, match='ended before step 3'):
    run(tmp_path, 9, profiling.Profiler(tmp_path / 'profile', (2, 9)))
  (file,) = files(tmp_path / 'profile')
  assert traced(file) == {2}


def test_a_resumed_run_begins_within_the_trace(tmp_path):
  run(tmp_path, 2)
  run(tmp_path, 5, profiling.Profiler(tmp_path / 'profile', (1, 4)))
  (file,) = files(tmp_path / 'profile')
  assert traced(file) == {3, 4}


@pytest.mark.parametrize('steps', [(1, 2), (7, 9)])
def test_none_of_the_steps_is_made(tmp_path, said, steps):
  run(tmp_path, 2)
  run(tmp_path, 5, profiling.Profiler(tmp_path / 'profile', steps))
  assert not files(tmp_path / 'profile')
  first, last = steps
  (line,) = [line for line in said if 'nothing is traced' in line]
  assert (
      f'profile_steps is {first}:{last} and the steps to come are 3 to' in line
  )


def test_nothing_is_traced_unless_asked_for(tmp_path, said):
  run(tmp_path, 2, profiling.Profiler(tmp_path / 'profile', None))
  assert not (tmp_path / 'profile').exists()
  assert not [line for line in said if 'traced' in line.split()]


def test_a_folder_of_an_object_store(tmp_path):
  with stores.bucket() as (bucket, objects):
    profiler = profiling.Profiler(bucket / 'run/sft/profile', (1, 1))
    run(tmp_path, 2, profiler)
    start = 'gs://bucket/run/sft/profile/plugins/profile/'
    (name,) = [n for n in objects.objects if n.endswith('.xplane.pb')]
    assert name.startswith(start)
    copy = tmp_path / 'copy.pb'
    copy.write_bytes(epath.Path(name).read_bytes())
  assert traced(copy) == {1}


def test_steps_as_text():
  assert profiling.parse('') is None
  assert profiling.parse('10:12') == (10, 12)
  for wrong in ('10', '0:3', '4:3', 'a:b', '1:2:3'):
    with pytest.raises(errors.ConfigError, match='profile_steps is .*10:12'):
      profiling.parse(wrong)
