"""What cannot be judged is met before a weight is read, with what would do."""

import pytest

from palign_jax import main
from palign_jax.core import errors, workdir as workdir_lib
from palign_jax.stages import context as context_lib, judges, settings
from palign_jax.text import prompts
from tests import fakes


@pytest.fixture
def check(tmp_path):
  """Checks the judges of a config with changes."""

  def check(student, **changes):
    config = fakes.config(tmp_path, student)
    config.update_from_flattened_dict(changes)
    made = settings.read(config.to_dict())
    place = workdir_lib.Workdir(tmp_path / 'run', main.STAGES)
    judges.check(context_lib.Context(made, place))

  return check


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
