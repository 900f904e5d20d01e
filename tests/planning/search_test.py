"""What does not fit is made to, by as little as possible."""

import pytest

from palign_jax.core import errors
from palign_jax.planning import search as search_lib, steps as steps_lib
from tests.planning import small


@pytest.fixture(name='world')
def fixture_world(tmp_path, monkeypatch):
  """Returns a maker of (search, steps as they are, names compiled)."""

  def world(need, **changes):
    """`need` maps (name, settings, mesh's sizes) to bytes of 100."""
    compiled = []

    def make(case, name):
      compiled.append(name)
      s, mesh = case.settings, dict(case.mesh.shape)
      if name == 'sft' and s.sft.batch_size % case.shards:
        raise errors.ConfigError('the batch does not split')
      if name == 'decode' and s.compute.num_rows % case.shards:
        raise errors.ConfigError('rows do not split')
      return small.step(name, int(need(name, s, mesh)))

    monkeypatch.setattr(steps_lib, 'make', make)
    config = small.config(tmp_path, **changes).to_dict()
    search = search_lib.Search(config, small.slice_of())
    made = {n: search.make({}, n) for n in steps_lib.STUDENT}
    compiled.clear()
    return search, made, compiled

  return world


def test_rows_are_fewer_until_the_cache_fits(world):
  def need(name, s, mesh):
    rows = s.compute.num_rows if name in ('prefill', 'decode') else 1
    return 30 + 5 * rows

  search, made, compiled = world(need, **{'compute.num_rows': 64})
  changes, steps = search_lib.nearest(search, made)
  assert changes == {'compute.num_rows': 8}
  assert all(map(search_lib.fits, steps.values()))
  # 32 and 16 rows are out of reach, so they are not even compiled.
  assert compiled == ['decode', 'prefill']


def test_what_was_made_with_more_rows_is_made_again(world):
  def need(name, s, mesh):
    rows = s.compute.num_rows
    return rows * {'decode': 6, 'prefill': 11}.get(name, 0)

  search, made, _ = world(need, **{'compute.num_rows': 32})
  changes, steps = search_lib.nearest(search, made)
  assert changes == {'compute.num_rows': 8}
  assert steps['decode'].need == 48 and steps['prefill'].need == 88


def test_a_batch_that_does_not_split_becomes_one_that_does(world):
  search, made, _ = world(lambda *_: 50, **{'sft.batch_size': 6})
  assert isinstance(made['sft'], errors.ConfigError)
  changes, _ = search_lib.nearest(search, made)
  assert changes == {'sft.batch_size': 8}


def test_rounding_is_changed_before_the_mesh(world):
  def need(name, s, mesh):
    return 120 if name == 'sft' and s.sft.remat != 'full' else 50

  search, made, compiled = world(need, **{'sft.remat': 'dots'})
  changes, _ = search_lib.nearest(search, made)
  assert changes == {'sft.remat': 'full'}
  assert compiled == ['sft'] * 2  # After what keeps attention only.


def test_less_is_judged_at_a_time(world):
  def need(name, s, mesh):
    return s.compute.judge_tokens / 8 if name == 'judge' else 50

  search, made, _ = world(need, **{'compute.judge_tokens': 2048})
  changes, _ = search_lib.nearest(search, made)
  assert changes == {'compute.judge_tokens': 256}


def test_the_mesh_is_changed_where_nothing_else_helps(world):
  def need(name, s, mesh):
    return 200 / mesh['tensor'] if name == 'judge' else 50

  search, made, _ = world(need)
  changes, steps = search_lib.nearest(search, made)
  assert changes['mesh.tensor'] == 2 and changes['mesh.fsdp'] == 2
  assert set(steps) == set(made)
  mesh = search.case(changes).mesh
  assert mesh.shape['tensor'] == 2 and mesh.size == 4


def test_full_fine_tuning_becomes_lora_last(world):
  def need(name, s, mesh):
    return 150 if s.sft.method == 'full' and name == 'sft' else 50

  search, made, _ = world(need, **{'sft.method': 'full'})
  changes, _ = search_lib.nearest(search, made)
  assert changes == {'sft.method': 'lora'}


def test_what_never_fits_ends_with_none(world):
  search, made, compiled = world(lambda *_: 1000)
  assert search_lib.nearest(search, made) is None
  assert len(compiled) <= 20


def test_a_change_of_a_config():
  config = {'a': {'b': 1, 'c': 2}}
  assert search_lib.changed(config, {'a.b': 3}) == {'a': {'b': 3, 'c': 2}}
  assert config == {'a': {'b': 1, 'c': 2}}
  assert search_lib.told_of({'a.b': 3}) == '--config.a.b=3'
