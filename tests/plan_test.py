"""The plan's words, numbers and exit codes; steps that are really compiled."""

import dataclasses
import json
import pathlib
import subprocess
import sys
import types

import pytest

from palign_jax import plan as plan_lib
from palign_jax.core import errors
from palign_jax.planning import (
    hlo,
    report,
    roofline,
    search as search_lib,
    steps as steps_lib,
    topology,
)
from palign_jax.sampling import weights as weights_lib
from tests.planning import small

ROOT = pathlib.Path(plan_lib.__file__).parents[1]
STEP = {
    'name',
    'hbm_bytes',
    'hbm_capacity',
    'flops',
    'collective_bytes',
    'roofline_s',
    'mfu_bound',
    'limit',
}
PLAN = {
    'topology',
    'chip',
    'fits',
    'steps',
    'tokens_per_s',
    'hours',
    'chip_hours',
}


@pytest.fixture(autouse=True)
def fixture_links(monkeypatch):
  """CPUs have no place in a torus."""
  monkeypatch.setattr(roofline, 'bandwidth', lambda *_: 1e9)


def made_up(tmp_path, steps, **changes):
  config = small.config(tmp_path, **changes).to_dict()
  search = search_lib.Search(config, small.slice_of())
  made = {step.name: step for step in steps}
  return report.Plan(search.case({}), made, None, ('math500', 'other'))


@pytest.fixture(name='fitting')
def fixture_fitting(tmp_path):
  return made_up(tmp_path, [small.step(name, 60) for name in steps_lib.STUDENT])


def test_the_json_is_the_issues(fitting):
  made = json.loads(json.dumps(report.as_json(fitting)))
  assert PLAN <= set(made) and made['fits'] is True
  assert [step['name'] for step in made['steps']] == list(steps_lib.STUDENT)
  step = made['steps'][0]
  assert STEP <= set(step)
  assert step['hbm_bytes'] == {
      'weights': 30,
      'optimizer': 0,
      'kv': 20,
      'activations': 10,
      'total': 60,
  }
  assert step['collective_bytes'] == {'fsdp': 7}
  assert (step['roofline_s'], step['limit']) == (0.5, 'compute')
  assert step['mfu_bound'] == 100 / (0.5 * 400)
  assert made['tokens_per_s'] == 128
  assert made['chip_hours'] == made['hours'] * 4
  assert made['hours'] == pytest.approx(sum(made['stages'].values()))


def test_hours_follow_from_the_config(fitting):
  stages = fitting.seconds()
  # A chunk of 8 rows takes half a second and reads 8 tokens of each.
  assert set(stages) == {'truncate', 'align', 'sample', 'sft'}
  assert stages['truncate'] == pytest.approx(
      1000 * ((512 + 512) / 8 + fitting.work.probes) / 8 * 0.5
  )
  example = 512 + 512 + 256
  rows = 1000 * example / (256 * 0.95)
  assert stages['sft'] == pytest.approx(-(-rows * 3 // 8) * 0.5)
  answers = 2 * (500 + 500)
  assert stages['sample'] == pytest.approx(
      answers * (512 / 128 + 3 * 256 / (128 * 0.92))
  )


def test_replies_that_judge_are_read_and_drawn(tmp_path):
  asks = {'truncate.verdict': 'generate', 'truncate.search': 'sequential'}
  names = ('prefill', 'decode', 'sft')
  plan = made_up(tmp_path, [small.step(name, 60) for name in names], **asks)
  assert steps_lib.names(plan.case) == list(names)
  probes = 512 // 24  # A prefix is as long as a trace here.
  assert plan.work.probes == probes
  reply = plan.case.settings.truncate.max_tokens
  assert plan.seconds()['truncate'] == pytest.approx(
      1000 * probes * (512 / 128 + reply / (128 * 0.92))
  )
  assert f'by a reply of {reply}' in report.as_text(plan)


def test_what_main_would_refuse_is_left_out_and_said(tmp_path):
  plan = made_up(tmp_path, [small.step('judge', 60)])
  refused = errors.ConfigError('the batch does not split')
  plan = dataclasses.replace(plan, made=plan.made | {'sft': refused})
  assert report.as_json(plan)['without'] == ['sft']
  assert '; without sft); ' in report.as_text(plan)


def test_continuations_that_judge_are_not_counted(tmp_path):
  asks = {'truncate.verdict': 'verified'}
  plan = made_up(tmp_path, [small.step('judge', 60)], **asks)
  text = "continuations that judge (verdict='verified') are not counted"
  assert text in plan.work.assumptions


def test_the_text_has_a_verdict(fitting, tmp_path):
  text = report.as_text(fitting)
  assert text.splitlines()[-1].startswith('FITS v5e:2x2: ')
  assert 'At least' in text and 'assum' not in text.splitlines()[0]
  bad = made_up(tmp_path, [small.step('judge', 60), small.step('sft', 101)])
  last = report.as_text(bad).splitlines()[-1]
  assert last == (
      'DOES NOT FIT v5e:2x2: sft. No nearer change than a larger slice was'
      ' found.'
  )


@pytest.mark.parametrize('need, code', [(60, 0), (200, 3)])
def test_exit_codes(tmp_path, monkeypatch, capsys, need, code):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  monkeypatch.setattr(
      steps_lib, 'make', lambda case, name: small.step(name, need)
  )
  given = types.SimpleNamespace(
      config=small.config(tmp_path),
      topology='v5e:2x2',
      json=str(tmp_path / 'plan.json'),
      steps=[],
      search=True,
  )
  monkeypatch.setattr(plan_lib.flags, 'FLAGS', given)
  with pytest.raises(SystemExit) as e:
    plan_lib.main(['plan'])
  assert e.value.code == code
  made = json.loads((tmp_path / 'plan.json').read_text())
  assert made['fits'] is (code == 0)
  assert ('DOES NOT FIT' in capsys.readouterr().out) is (code == 3)


def run(*args):
  return subprocess.run(
      [sys.executable, '-m', 'palign_jax.plan', *args],
      cwd=ROOT,
      capture_output=True,
      text=True,
  )


def test_what_cannot_be_told_is_one_line_and_exit_1():
  got = run('--config=configs/qwen2_5_7b.py', '--topology=v5e-16')
  assert got.returncode == 1
  assert got.stderr.startswith('Error: --topology=v5e-16: give chip and shape')
  assert len(got.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'mesh.tensor': 3}, 'config.mesh asks for'),
        ({'student.path': 'Qwen/Qwen9-1B'}, 'no model known by that name'),
        ({'student.path': None}, 'config.student.path is not set'),
        ({'mesh.fsdp': 4, 'mesh.tensor': 4}, 'and there are 4'),
        ({'mesh.fsdp': -1, 'sft.rank': 0}, 'config.sft.rank is 0'),
        ({'compute.attention': 'cudnn'}, "attention is 'cudnn': it needs NVID"),
    ],
)
def test_a_config_that_is_wrong(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  config = small.config(tmp_path)
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  with pytest.raises(errors.ConfigError, match=message):
    plan_lib.make(config, 'v5e:2x2')


def test_a_mesh_that_heads_do_not_split_over(tmp_path, monkeypatch):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  config = small.config(tmp_path, **{'mesh.tensor': 4, 'mesh.fsdp': 1})
  with pytest.raises(errors.ConfigError, match="axis 'kv_heads' of size 2"):
    plan_lib.make(config, 'v5e:2x2')


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'sft.max_tokens': 4096}, 'the student has 2048 positions; lower it'),
        ({'sft.batch_size': 6}, 'batch_size is 6, no multiple of the 4 rows'),
        (
            {'sft.max_tokens': 255, 'mesh.sequence': 2},
            'max_tokens is 255 and config.mesh.sequence 2',
        ),
    ],
)
def test_what_main_refuses_to_train(tmp_path, monkeypatch, changes, message):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  config = small.config(tmp_path, **changes)
  plan = plan_lib.make(config, 'v5e:2x2', only=['sft'], search=False)
  assert not plan.fits
  assert message in report.as_json(plan)['refused']['sft']


def test_a_step_that_there_is_not(tmp_path, monkeypatch):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  message = '--steps=sft,typo: no step typo; those of this run are judge, pre'
  with pytest.raises(errors.ConfigError, match=message):
    plan_lib.make(small.config(tmp_path), 'v5e:2x2', only=['sft', 'typo'])


def test_two_slices_send_each_other_gradients_alone(tmp_path):
  """Compiled for TPUs: weights are gathered within a slice."""
  pytest.importorskip('libtpu')
  changes = {'mesh.data': 2, 'mesh.dcn_data': 2, 'sft.method': 'full'}
  config = small.config(tmp_path, **changes)
  # Wide enough that tiles of 8 x 128 numbers are full.
  wide = dict(hidden_size=1024, intermediate_size=2048, vocab_size=1024)
  (tmp_path / 'config.json').write_text(json.dumps(small.RAW | wide))
  plan = plan_lib.make(config, 'v5e:2x2', only=['sft'], search=False)
  axes = dict(data=2, fsdp=4, tensor=1, sequence=1)
  assert dict(plan.case.train_mesh.shape) == axes
  assert (len(plan.case.topology.devices), plan.case.hosts) == (8, 2)
  sft = plan.made['sft']
  made = report.as_json(plan)
  assert (made['topology'], made['slices']) == ('v5e:2x2', 2)
  assert made['chip_hours'] == 8 * made['hours']
  assert 'FITS 2 slices of v5e:2x2' in report.as_text(plan)
  assert set(sft.collective_bytes) == {'fsdp', hlo.DCN}
  # The float32 gradient of what a device holds: half of it to the other slice,
  # and half of the sum back.
  sent = sft.collective_bytes[hlo.DCN]
  assert sent == pytest.approx(sft.held['weights'], rel=0.1)
  assert sft.roofline.limits['dcn'] == sent / 3.125e9


def test_the_programs_of_a_run_on_devices_of_this_machine(
    tmp_path, monkeypatch
):
  monkeypatch.setattr(topology, 'describe', lambda *_: small.slice_of())
  # On a CPU the sampler would turn its weights; a TPU takes them as they lie.
  monkeypatch.setattr(weights_lib, 'unpack', lambda params, *_: params)
  plan = plan_lib.make(small.config(tmp_path), 'v5e:2x2', search=False)
  assert plan.fits and list(plan.made) == list(steps_lib.STUDENT)
  weights = plan.made['decode'].held['weights']
  # A quarter of what is split over fsdp, float32; norms are.
  assert 4 * weights == pytest.approx(
      4 * (2 * 64 * (2 * 64 + 2 * 32 + 3 * 128) + 2 * 64 * 64), rel=0.03
  )
  for name, step in plan.made.items():
    kinds = step.hbm_bytes
    assert kinds['total'] == sum(
        kinds[k] for k in ('weights', 'optimizer', 'kv', 'activations')
    )
    assert set(step.collective_bytes) == {'fsdp'}, name
    assert step.mfu_bound > 0
  # Two moments of every adapter's float32 numbers.
  adapters = plan.made['sft'].held['weights'] - weights
  assert plan.made['sft'].held['optimizer'] == pytest.approx(
      2 * adapters, rel=0.01
  )
