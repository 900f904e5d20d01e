"""Every file of configs/ loads, whole and as a smoke test, and is complete."""

import dataclasses
import importlib
import inspect
import pathlib

import ml_collections
import pytest

from configs import common
from palign_jax.core import errors
from palign_jax.models import presets
from palign_jax.parallel import local, mesh as mesh_lib
from palign_jax.stages import settings as settings_lib, validation
from tests.parallel import local_test

FOLDER = pathlib.Path(common.__file__).parent
NAMES = sorted(p.stem for p in FOLDER.glob('*.py'))
RUNS = [name for name in NAMES if name not in ('__init__', 'common', 'sandbox')]


def arguments(name):
  """The arguments that a config takes, from its call of parse_arg."""
  module = importlib.import_module(f'configs.{name}')
  found = [None]
  for arg in ('smoke', 'paper'):
    if f'{arg}=False' in inspect.getsource(module):
      found.append(arg)
  return found


CASES = [(name, arg) for name in RUNS for arg in arguments(name)]


@pytest.mark.parametrize('name, arg', CASES)
def test_a_config_passes_the_door(name, arg):
  config = importlib.import_module(f'configs.{name}').get_config(arg)
  assert isinstance(config, ml_collections.ConfigDict)
  settings = validation.read(config.to_dict())
  assert settings.seed == config.seed
  # It sets what there is, and no name of its own.
  base = common.base()
  for section in ('teach', 'truncate', 'align', 'sft', 'sample', 'compute'):
    assert set(config[section]) == set(base[section])


@pytest.mark.parametrize('name', RUNS)
def test_a_config_says_what_it_is(name):
  module = importlib.import_module(f'configs.{name}')
  assert '--config=configs/' in module.__doc__
  with pytest.raises(ValueError, match="'nope' is none of"):
    module.get_config('nope')


def test_every_model_of_the_paper_has_a_config():
  paths = set()
  for name in set(RUNS) - {'quickstart', 'traces'}:
    config = importlib.import_module(f'configs.{name}').get_config()
    paths.add(config.student.path)
  traces = importlib.import_module('configs.traces')
  for teacher in ('qwq_32b', 'r1_distill_qwen_7b'):
    config = traces.get_config(f'teacher={teacher}')
    model = presets.PRESETS[config.teacher.path].model
    assert model.num_kv_heads % config.mesh.tensor == 0
    # Two hosts of four devices: each samples by itself.
    whole = mesh_lib.make(config.mesh.to_dict(), local_test.HOSTS)
    assert local.mesh(whole, 0).devices.shape == (1, 1, 4, 1)
    paths.add(config.teacher.path)
  assert paths == set(presets.PRESETS)
  with pytest.raises(ValueError, match='it can be qwq_32b, r1_distill'):
    traces.get_config('teacher=gpt')


def test_smoke_is_less():
  quickstart = importlib.import_module('configs.quickstart')
  whole, smoke = quickstart.get_config(), quickstart.get_config('smoke')
  assert smoke.teach.limit < whole.teach.limit
  assert smoke.sft.epochs < whole.sft.epochs


def test_base_has_every_field_of_settings():
  base = common.base().to_dict()
  for field in dataclasses.fields(settings_lib.Settings):
    assert field.name in base
    if dataclasses.is_dataclass(field.type):
      names = {f.name for f in dataclasses.fields(field.type)}
      assert names == set(base[field.name])


def test_the_recipe_of_the_sandbox_loads():
  config = importlib.import_module('configs.sandbox').get_config()
  names = [run['name'] for run in config.runs]
  assert len(set(names)) == len(names)
  for i, run in enumerate(config.runs):
    assert not run['init_from'] or run['init_from'] in names[:i]


def test_parse_arg():
  parse = lambda arg: common.parse_arg(arg, smoke=False, n=3, name='a')
  assert parse(None).to_dict() == {'smoke': False, 'n': 3, 'name': 'a'}
  got = parse('smoke,n=5,name=b').to_dict()
  assert got == {'smoke': True, 'n': 5, 'name': 'b'}
  assert parse('smoke=False').smoke is False
  for wrong, message in (
      ('nope', "'nope' is none of"),
      ('smoke=yes', 'must be True or False'),
      ('n=many', 'invalid literal'),
  ):
    with pytest.raises(ValueError, match=message):
      parse(wrong)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'truncate.verdict': 'vote'}, 'truncate.verdict is .vote.; it can be'),
        ({'truncate.none_enough': 'x'}, 'it can be whole, drop, most_probable'),
        (
            {'truncate.too_long': 'x'},
            'truncate.too_long is .x.; it can be drop',
        ),
        ({'truncate.threshold': 1.0}, 'threshold 1.0 must lie between'),
        ({'truncate.abstain': 0.6}, 'abstain 0.6 between'),
        ({'truncate.rule': 'x'}, 'it can be first, stable, isotonic'),
        ({'truncate.abstained': 'x'}, 'it can be no, verify'),
        ({'truncate.calibration': 'x'}, 'it can be none, prior'),
        ({'truncate.calibration_fit': 'x'}, 'it can be threshold, platt'),
        ({'truncate.stable': 0}, 'config.truncate.stable is 0; at least 1'),
        ({'truncate.verify.k': 0}, 'config.truncate.verify.k is 0; at least 1'),
        ({'truncate.verify.max_cuts': -1}, 'verify.max_cuts is -1; at least 0'),
        ({'truncate.verify.pass_rate': 0.0}, 'pass_rate is 0.0; it must be'),
        ({'truncate.top_p': 0.0}, 'config.truncate.top_p is 0.0'),
        ({'truncate.temperature': -1.0}, 'config.truncate.temperature is'),
        ({'truncate.verify.top_p': 0.0}, 'config.truncate.verify.top_p is 0.0'),
        ({'truncate.verify.limit_s': 0.0}, 'verify.limit_s is 0.0; it must be'),
        ({'truncate.verify.kk': 1}, 'config.truncate.verify.kk: Verify has no'),
        ({'truncate.yardstick.k': 0}, 'config.truncate.yardstick.k is 0'),
        ({'truncate.yardstick.traces': -1}, 'yardstick.traces is -1; at least'),
        ({'compute.memory_gib': -1.0}, 'config.compute.memory_gib is -1.0'),
        (
            {'compute.profile_steps': '3'},
            "steps is '3'; give the first",
        ),
        (
            {'truncate.rule': 'stable'},
            "rule is 'stable', which search='binary' cannot follow",
        ),
        (
            {
                'truncate.rule': 'isotonic',
                'truncate.search': 'curve',
                'truncate.abstained': 'verify',
            },
            "rule='isotonic' reads p_enough, which verifying does not change",
        ),
        (
            {
                'truncate.rule': 'isotonic',
                'truncate.search': 'curve',
                'truncate.verdict': 'generate',
            },
            "rule='isotonic' needs p_enough, which verdict='generate' does not",
        ),
        (
            {
                'truncate.verdict': 'generate',
                'truncate.none_enough': 'most_probable',
            },
            "none_enough='most_probable' needs p_enough, which",
        ),
        (
            {'truncate.calibration_fit': 'platt'},
            "calibration_fit is 'platt' and there are no rows to fit on",
        ),
        (
            {'truncate.abstained': 'verify'},
            "abstained='verify' and abstain=0, so that nothing abstains",
        ),
        (
            {
                'truncate.verdict': 'generate',
                'truncate.calibration_rows': 'rows.jsonl',
            },
            "verdict='generate' gives no p_enough to calibrate",
        ),
        ({'align.mode': 'x'}, 'align.mode is .x.; it can be prefill, draft'),
        ({'align.n': 0}, 'config.align.n is 0; n and max_tokens are'),
        ({'align.temperature': -0.1}, 'config.align.temperature is -0.1'),
        ({'sample.top_p': 0.0}, 'config.sample.top_p is 0.0'),
        ({'sample.top_k': -1}, 'config.sample.top_k is -1'),
        ({'teach.max_tokens': 0}, 'config.teach.max_tokens is 0'),
        ({'teach.repetition_penalty': 0.0}, 'teach.repetition_penalty is 0.0'),
        ({'align.stop': ('',)}, "config.align.stop is .'',.; it must be a tu"),
        ({'sample.stop': 'End'}, "config.sample.stop is 'End'; it must be"),
        ({'teach.stop': (3,)}, r'config.teach.stop is \(3,\); it must be'),
        ({'truncate.verify.stop': [None]}, r'truncate.verify.stop is \[None'),
        ({'assemble.keep': 'x'}, 'assemble.keep is .x.; it can be first, all'),
        ({'assemble.unverifiable': 'x'}, 'it can be drop, keep'),
        ({'sft.method': 'x'}, 'sft.method is .x.; it can be lora, full'),
        ({'sft.remat': 'x'}, 'remat is .x.; it can be none, dots, save_attent'),
        ({'sft.quantize': 'x'}, 'quantize is .x.; it can be none, int8'),
        (
            {'sft.quantize': 'int8', 'sft.method': 'full'},
            "config.sft.quantize is 'int8', which only a frozen base can be",
        ),
        (
            {'sft.targets': ('q', 'qkv')},
            r"config.sft.targets is .* \['qkv'\] matches no projection",
        ),
        ({'sft.targets': ()}, 'config.sft.targets is .* an empty list matches'),
        ({'sft.epochs': 0}, 'config.sft.epochs is 0; at least 1'),
        ({'sft.rank': 0}, 'config.sft.rank is 0; at least 1'),
        ({'sft.export_dtype': 'int8'}, 'sft.export_dtype is .int8.; it can be'),
        ({'student.dtype': 'f'}, 'student.dtype is .f.; it can be float32'),
        (
            {'sft.optim.lr': 1.0},
            r'config.sft.optim.lr: OptimConfig has no such',
        ),
        (
            {'sft.optim.clip_norm': 0.0},
            'clip_norm is 0.0; it must be above 0; ',
        ),
        (
            {'sft.optim.peak_lr': -1.0},
            'optim.peak_lr is -1.0; it must be above',
        ),
        ({'sft.optim.warmup_frac': 3.0}, 'frac is 3.0; it must be from 0 to 1'),
        (
            {'compute.loss_chunk': -1},
            'loss_chunk is -1; it must be above 0, or',
        ),
        ({'sft.rnk': 1}, 'config.sft.rnk: Sft has no such field. Did you mean'),
        ({'nope': 1}, 'config.nope: Settings has no such field'),
    ],
)
def test_the_door_names_what_is_wrong(change, message):
  config = common.base().to_dict()
  for name, value in change.items():
    *path, last = name.split('.')
    place = config
    for part in path:
      place = place[part]
    place[last] = value
  with pytest.raises(errors.ConfigError, match=message):
    validation.read(config)


def test_a_section_or_field_that_is_missing():
  config = common.base().to_dict()
  del config['align']['mode']
  with pytest.raises(
      errors.ConfigError, match='config.align: Align needs mode'
  ):
    validation.read(config)
  del config['align']
  with pytest.raises(errors.ConfigError, match='config.align: the section is'):
    validation.read(config)


def test_whole_numbers_serve_as_fractions():
  config = common.base().to_dict()
  config['align']['temperature'] = 1
  got = validation.read(config).align.temperature
  assert got == 1.0 and isinstance(got, float)


def test_fields_of_a_source_may_be_spelt_out():
  config = common.base()
  names = dict(question='q', answer='a', trace='t', id='')
  config.teach.fields = names
  assert dict(validation.read(config.to_dict()).teach.fields) == names


@pytest.mark.parametrize(
    'name, value',
    [
        ('compute.group', 0),
        ('compute.log_every', 0),
        ('grade.resamples', 0),
        ('assemble.end', ''),
    ],
)
def test_values_that_would_fail_late_are_refused(name, value):
  config = common.base()
  config.update_from_flattened_dict({name: value})
  with pytest.raises(errors.ConfigError, match='config.' + name.split('.')[0]):
    validation.read(config.to_dict())
