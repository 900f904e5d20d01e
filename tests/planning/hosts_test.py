"""Judging and sampling are planned as each host does them, by itself."""

import json

import jax
import pytest

from palign_jax import plan as plan_lib
from palign_jax.core import errors, workdir as workdir_lib
from palign_jax.planning import (
    cases,
    report,
    search as search_lib,
    steps as steps_lib,
    topology as topology_lib,
)
from palign_jax.stages import context as context_lib, validation
from tests.planning import small

pytest.importorskip('libtpu')
NAME = 'v5e:4x4'  # Four hosts of four chips.
RAW = {
    **small.RAW,
    'vocab_size': 512,
    'hidden_size': 1024,
    'num_attention_heads': 8,
    'num_key_value_heads': 8,
}


def config(folder, **changes):
  made = small.config(folder, **{'compute.num_rows': 16, **changes})
  (folder / 'config.json').write_text(json.dumps(RAW))
  return made


def case_of(made, name=NAME):
  return cases.make(
      validation.read(made.to_dict()), topology_lib.describe(name)
  )


def run_of(case, folder, monkeypatch, host):
  """What main would have on one of the hosts."""
  monkeypatch.setattr(jax, 'devices', lambda *_: list(case.topology.devices))
  monkeypatch.setattr(jax, 'process_index', lambda *_: host)
  workdir = workdir_lib.Workdir(folder / 'run', ())
  return context_lib.Context(case.settings, workdir)


@pytest.mark.parametrize(
    'name, hosts',
    [('v5e:2x2', 1), (NAME, 4), ('v4:2x2x4', 4), ('v5p:2x2x2', 2)],
)
@pytest.mark.parametrize(
    'mesh', [{}, {'tensor': 4}, {'tensor': 2, 'sequence': 2}]
)
def test_the_mesh_is_that_of_a_host(tmp_path, monkeypatch, name, hosts, mesh):
  made = config(tmp_path, **{f'mesh.{axis}': n for axis, n in mesh.items()})
  case = case_of(made, name)
  assert case.hosts == hosts
  for host in range(hosts):
    own = run_of(case, tmp_path, monkeypatch, host).local_mesh
    assert own.shape == case.mesh.shape and own.size == 4
    assert {d.process_index for d in own.devices.flat} == {host}
    if not host:  # A slice of one host stands for it.
      places = [[d.coords for d in m.devices.flat] for m in (own, case.mesh)]
      assert places[0] == places[1]


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'mesh.tensor': 8}, 'config.mesh.tensor must divide 4'),
        ({'compute.num_rows': 6}, 'num_rows is 6, which does not split over 4'),
    ],
)
def test_a_refusal_is_the_stages(tmp_path, monkeypatch, changes, message):
  made = config(tmp_path, **changes)
  case = case_of(made)
  with pytest.raises(errors.ConfigError, match=message) as planned:
    cases.check_host(case)
    steps_lib.make(case, 'decode')
  run = run_of(case, tmp_path, monkeypatch, 1)
  with pytest.raises(errors.ConfigError, match=message) as refused:
    run.check_rows()
  assert str(planned.value) == str(refused.value)


def test_training_alone_may_go_beyond_a_host(tmp_path, monkeypatch):
  monkeypatch.setattr(
      steps_lib, 'make', lambda case, name: small.step(name, 60)
  )
  made = config(tmp_path, **{'mesh.tensor': 8})
  with pytest.raises(errors.ConfigError, match='tensor must divide 4'):
    plan_lib.make(made, NAME)
  plan = plan_lib.make(made, NAME, only=['sft'])
  assert plan.fits and 'Each host' not in report.as_text(plan)


@pytest.mark.parametrize(
    'rows, need, wanted',
    [
        (16, lambda s, mesh: 10 * s.compute.num_rows, {'compute.num_rows': 8}),
        (64, lambda s, mesh: 18 * s.compute.num_rows, {'compute.num_rows': 4}),
        (16, lambda s, mesh: 350 / mesh['tensor'], {'mesh.tensor': 4}),
        (16, lambda s, mesh: 700 / mesh['tensor'], None),
    ],
)
def test_the_nearest_change_is_one_of_a_host(
    tmp_path, monkeypatch, rows, need, wanted
):
  def make(case, name):
    fits = name not in ('prefill', 'decode')
    mesh = dict(case.mesh.shape)
    return small.step(name, 50 if fits else int(need(case.settings, mesh)))

  monkeypatch.setattr(steps_lib, 'make', make)
  made = config(tmp_path, **{'compute.num_rows': rows})
  plan = plan_lib.make(made, NAME)
  found = plan.nearest and plan.nearest[0]
  assert (found is None) == (wanted is None)
  assert wanted is None or wanted.items() <= found.items()


def test_rows_are_rounded_to_what_a_host_splits(tmp_path):
  made = config(tmp_path, **{'compute.num_rows': 6})
  tries = search_lib.Search(made.to_dict(), topology_lib.describe(NAME))
  refused = tries.make({}, 'decode')
  changes = search_lib._own(tries, {}, 'decode', refused)
  assert next(changes) == {'compute.num_rows': 8}


def test_a_program_in_which_all_devices_of_a_host_take_part(tmp_path):
  made = config(tmp_path, **{'mesh.tensor': 4})
  made.student.dtype = 'bfloat16'
  plan = plan_lib.make(made, NAME, only=['judge'], search=False)
  assert plan.fits and set(plan.made['judge'].collective_bytes) == {'tensor'}


def test_a_host_of_many_takes_what_one_alone_takes(tmp_path):
  """On 16 chips each device holds what it holds on the 4 of one host."""
  made = config(tmp_path, **{'mesh.tensor': 2})
  made.student.dtype = 'bfloat16'
  names = ['judge', 'prefill', 'decode']
  plan = lambda name: plan_lib.make(made, name, only=names, search=False)
  alone, many = plan('v5e:2x2'), plan(NAME)
  for name in names:
    one, all_of_them = alone.made[name], many.made[name]
    assert all_of_them.held == one.held
    assert all_of_them.need == pytest.approx(one.need, rel=0.01)
    assert all_of_them.flops == one.flops
    assert all_of_them.collective_bytes == one.collective_bytes
    assert all_of_them.tokens == 4 * one.tokens
    assert all_of_them.tokens_per_s == pytest.approx(4 * one.tokens_per_s)
  # Two devices hold the rows of a host, each half of the heads.
  a_token = 2 * 2 * 8 * 128 * 2  # Keys and values of two layers, bfloat16.
  slots = many.made['decode'].held['kv'] * 4 / (16 * a_token)
  assert slots == int(slots) and 512 + 256 < slots <= 2048
  assert many.seconds()['align'] == pytest.approx(alone.seconds()['align'] / 4)
  # 125 groups of 8 traces: a host has 32 of them at most.
  ratio = many.seconds()['truncate'] / alone.seconds()['truncate']
  assert ratio == pytest.approx(32 / 125)
  assert report.as_json(many)['hosts'] == 4
  text = report.as_text(many)
  assert '16 chips on 4 hosts, 16 devices' in text
  assert 'config.compute.num_rows=16 of its own; mesh data=1 fsdp=2' in text
  assert '4 chips on 1 host, 4 devices' in report.as_text(alone)
