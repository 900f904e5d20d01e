"""What cannot be judged is met before a weight is read, with what would do."""

from concurrent import futures
import contextlib
import importlib

import pytest

from palign_jax import main
from palign_jax.core import errors, jsonl, workdir as workdir_lib
from palign_jax.parallel import memory
from palign_jax.stages import context as context_lib, judges, validation
from palign_jax.text import prompts
from tests import fakes


@pytest.fixture
def check(tmp_path):
  """Checks the judges of a config with changes."""

  def check(student, **changes):
    config = fakes.config(tmp_path, student)
    config.update_from_flattened_dict(changes)
    made = validation.read(config.to_dict())
    place = workdir_lib.Workdir(tmp_path / 'run', main.STAGES)
    judges.check(context_lib.Context(made, place))

  return check


def test_hosts_agree_on_the_lesser_budget(student, tmp_path):
  def budget(peers, gib):
    folder = tmp_path / str(gib)
    folder.mkdir()
    config = fakes.config(folder, student)
    config.compute.memory_gib = gib
    place = workdir_lib.Workdir(folder / 'run', main.STAGES)
    made = validation.read(config.to_dict())
    context = context_lib.Context(made, place, peers)
    with contextlib.ExitStack() as stack:
      return judges.Judges(context, stack)._budget

  with futures.ThreadPoolExecutor(2) as pool:
    said = list(pool.map(budget, fakes.Peers.team(2), (1.0, 2.0)))
  assert said == [2**30, 2**30]


def test_samplers_copies_are_no_room_for_trunks(student, tmp_path):
  def budget(**changes):
    config = fakes.config(tmp_path, student)
    config.compute.memory_gib = 1.0
    config.update_from_flattened_dict(changes)
    place = workdir_lib.Workdir(tmp_path / 'run', main.STAGES)
    context = context_lib.Context(validation.read(config.to_dict()), place)
    with contextlib.ExitStack() as stack:
      made = judges.Judges(context, stack)
      return made._budget, memory.per_device(made._student.params)

  alone, weights = budget()
  assert alone == 2**30
  proven, _ = budget(**{'truncate.verdict': 'verified'})
  measured, _ = budget(**{'truncate.yardstick.traces': 2})
  assert alone - proven == weights > 0
  assert alone - measured == 2 * weights


def test_a_band_that_leaves_no_room_for_a_yes(check, student, tmp_path):
  band = {'truncate.threshold': 0.9, 'truncate.abstain': 0.1}
  with pytest.raises(
      errors.ConfigError, match='is 0.1: from the threshold 0.9 '
  ):
    check(student, **band)
  check(student, **band | {'truncate.abstain': 0.09})
  rows = tmp_path / 'rows.jsonl'
  jsonl.write(rows, [{'margin': m, 'label': int(m > 5)} for m in range(11)])
  fitted = {'truncate.calibration_rows': str(rows), 'truncate.abstain': 0.01}
  with pytest.raises(errors.ConfigError, match='fitted, up to 1 every verdict'):
    check(student, **fitted)
  check(student, **fitted | {'truncate.calibration_fit': 'platt'})


@pytest.mark.parametrize('section', ['align', 'sample', 'truncate.verify'])
def test_a_special_token_is_no_stop_string(tmp_path, student, section):
  config = fakes.config(tmp_path, student)
  config.truncate.verdict = 'verified'
  stop = ('Question:', 'end<|im_end|>')
  config.update_from_flattened_dict({f'{section}.stop': stop})
  made = validation.read(config.to_dict())
  place = workdir_lib.Workdir(tmp_path / 'run', main.STAGES)
  stage = importlib.import_module(f'palign_jax.stages.{section.split(".")[0]}')
  message = rf"config\.{section}\.stop: 'end<\|im_end\|>' has '<\|im_end\|>' in"
  with pytest.raises(errors.ConfigError, match=message):
    stage.check(context_lib.Context(made, place))


GENERATE = {'truncate.verdict': 'generate'}


def test_labels_that_do_not_part(check, student, monkeypatch):
  check(student)
  monkeypatch.setattr(prompts, 'NOT_ENOUGH', prompts.ENOUGH)
  for asks in (
      {},
      {'truncate.verdict': 'verified'},
      {**GENERATE, 'truncate.yardstick.traces': 2},
  ):
    with pytest.raises(errors.ConfigError, match='no token tells them apart'):
      check(student, **asks)
  check(student, **GENERATE)  # The cure that the message names.


def test_a_prompt_without_room_is_told_what_would_make_some(check, tmp_path):
  """A label takes 8 tokens whatever max_tokens says."""
  student = fakes.model_folder(tmp_path / 'short', max_positions=48)
  with pytest.raises(errors.ConfigError) as e:
    check(student, **{'truncate.max_tokens': 1})
  assert 'the context leaves 40; take a shorter prompt, or a' in str(e.value)
  assert 'max_tokens' not in str(e.value)
  with pytest.raises(errors.ConfigError) as e:
    check(student, **GENERATE)
  assert ', or lower config.truncate.max_tokens.' in str(e.value)
