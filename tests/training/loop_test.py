"""A run that stops and resumes is the run that never stopped."""

import jax
import numpy as np
import pytest

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import errors, jsonl, stopping
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import data, diagnosis, loop, metrics, step
from tests import fakes, processes
from tests.training import resuming, tiny

EXAMPLES = [tiny.example(i, 5 + i % 9) for i in range(30)]
DATA = data.DataConfig(max_tokens=32, batch_size=2, max_waiting=3)


def batches(num_epochs=9):
  return data.PackedBatches(data.shuffled(EXAMPLES, num_epochs, seed=1), DATA)


@pytest.fixture(scope='module')
def step_fn():
  return tiny.stepper(tiny.start(tiny.params()), {})


def examine(state, batch):
  arrays = step.place(batch, step.StepConfig(1), None)
  return diagnosis.examine(state.params, tiny.MODEL, arrays, tiny.LOSS)


def run(
    directory,
    num_steps,
    step_fn,
    stream=None,
    log_every=1,
    save_every=2,
    save_every_s=1e9,
    examine=examine,
    begin=None,
):
  """Returns the final state."""
  config = loop.LoopConfig(num_steps, log_every, save_every, save_every_s)
  first = tiny.start(tiny.params())
  with (
      store_lib.CheckpointStore(directory / 'checkpoints', keep=2) as store,
      metrics.MetricsWriter(directory) as writer,
  ):
    state = loop.train(
        config,
        first,
        begin or (lambda: first),
        step_fn,
        stream or batches(),
        store,
        writer,
        examine,
    )
  return jax.device_get(state)


def losses(directory):
  rows = jsonl.read(directory / 'metrics.jsonl')
  return [(row['step'], row['loss'], row['lr']) for row in rows]


def same(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_array_equal(a, b)


def never():
  pytest.fail('an initial state was made')


def test_resumed_equals_uninterrupted(tmp_path, step_fn):
  want = run(tmp_path / 'whole', 7, step_fn)
  run(tmp_path / 'parts', 3, step_fn)
  got = run(tmp_path / 'parts', 7, step_fn, begin=never)
  same(got, want)
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
  assert [step for step, _, _ in losses(tmp_path / 'whole')] == list(
      range(1, 8)
  )


def test_a_finished_run_does_nothing(tmp_path, step_fn):
  want = run(tmp_path, 2, step_fn)
  before = losses(tmp_path)
  got = run(tmp_path, 2, lambda *_: pytest.fail('a step was made'))
  same(got, want)
  assert losses(tmp_path) == before


class Poisoned(data.PackedBatches):
  """From batch `first_bad` on, weights are nan."""

  first_bad, last_bad = 4, 99

  def __iter__(self):
    for number, batch in enumerate(super().__iter__(), 1):
      if self.first_bad <= number <= self.last_bad:
        batch['weights'][:] = np.nan
      yield batch


def poisoned():
  return Poisoned(data.shuffled(EXAMPLES, 9, seed=1), DATA)


@pytest.mark.parametrize('log_every', [1, 100])
def test_nan_stops_the_run_and_is_never_saved(tmp_path, step_fn, log_every):
  message = r'Loss is nan and .* at step 4, first in the loss, in the rows of e'
  with pytest.raises(loop.NonFiniteError, match=message):
    run(tmp_path, 9, step_fn, poisoned(), log_every, save_every=3)
  assert [step for step, _, _ in losses(tmp_path)] == (
      [1, 2, 3] if log_every == 1 else [3]
  )
  got = run(tmp_path, 3, lambda *_: pytest.fail('a step was made'))
  same(got, run(tmp_path / 'clean', 3, step_fn))


def test_what_is_looked_at_is_what_the_failed_step_began_with(
    tmp_path, step_fn, monkeypatch
):
  looked_at = []

  def look(state, batch):
    looked_at.append((jax.device_get(state.params), batch['weights']))
    return examine(state, batch)

  monkeypatch.setattr(Poisoned, 'last_bad', 4)  # Batch 5 is sound.
  with pytest.raises(loop.NonFiniteError, match='at step 4, first in the loss'):
    run(tmp_path / 'a', 9, step_fn, poisoned(), 100, 100, examine=look)
  ((params, weights),) = looked_at
  assert np.isnan(weights).all()
  same(params, run(tmp_path / 'b', 3, step_fn).params)


def test_no_memory_to_look_hides_neither_step_nor_rows(
    tmp_path, step_fn, monkeypatch
):
  def full(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: no room for 9 bytes.\nMore.')

  said = []
  monkeypatch.setattr(
      loop.logging, 'warning', lambda text, *args: said.append(text % args)
  )
  message = r'Loss is nan and .* at step 4, .*in the rows of e'
  with pytest.raises(loop.NonFiniteError, match=message):
    run(tmp_path, 9, step_fn, poisoned(), examine=full)
  (line,) = said
  assert line.endswith('looked for (RESOURCE_EXHAUSTED: no room for 9 bytes.).')


def test_data_that_ends_early(tmp_path, step_fn):
  with pytest.raises(errors.DataError, match='ended before step 6'):
    run(tmp_path, 99, step_fn, batches(num_epochs=1))


def test_saves_by_the_clock(tmp_path, step_fn):
  run(tmp_path, 2, step_fn, save_every=100, save_every_s=0.0)
  names = sorted(p.name for p in (tmp_path / 'checkpoints').iterdir())
  assert names == ['1', '2']


@pytest.fixture
def told(monkeypatch):
  """Tells the process to end when it takes batch 3."""
  monkeypatch.setattr(resuming.Batches, 'stop_at', 3)
  yield
  stopping.forget()


def test_told_to_end_it_saves_the_running_step(tmp_path, step_fn, told):
  stream = resuming.Batches(data.shuffled(EXAMPLES, 9, seed=1), DATA)
  with pytest.raises(stopping.Stopped) as e:
    run(tmp_path / 'parts', 7, step_fn, stream, save_every=100)
  assert e.value.code == stopping.EXIT_CODE == 75
  stopping.forget()
  assert [step for step, _, _ in losses(tmp_path / 'parts')] == [1, 2, 3]
  got = run(tmp_path / 'parts', 7, step_fn, save_every=100)
  same(got, run(tmp_path / 'whole', 7, step_fn))
  assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')


def close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope='module')
def one_device(tmp_path_factory):
  """Five steps on one device; the folder and the parameters."""
  folder = tmp_path_factory.mktemp('one')
  return folder, resuming.run(folder, 5, fakes.one_device())


def test_goes_on_upon_other_meshes(tmp_path, one_device):
  folder, want = one_device
  resuming.run(tmp_path, 2, fakes.one_device())
  resuming.run(tmp_path, 4, mesh_lib.make({'data': 1, 'fsdp': 4, 'tensor': 2}))
  got = resuming.run(
      tmp_path, 5, mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  )
  close(got, want)
  close(losses(tmp_path), losses(folder))


@pytest.mark.slow
def test_goes_on_upon_two_hosts_which_stop_together(tmp_path, one_device):
  folder, want = one_device
  resuming.run(tmp_path, 1, fakes.one_device())
  module = 'tests.training.resuming'
  # One of them is told at its second batch, after step 2 of the run.
  for code, output in processes.finish(
      processes.start(2, module, str(tmp_path), '5', '2', devices=2)
  ):
    assert code == stopping.EXIT_CODE, output
  assert [step for step, _, _ in losses(tmp_path)] == [1, 2, 3]
  close(resuming.run(tmp_path, 5, fakes.one_device()), want)
  close(losses(tmp_path), losses(folder))
