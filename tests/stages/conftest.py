"""One tiny student, one whole run of it, and a cache of compiled programs."""

import dataclasses
import pathlib

import jax
from jax.experimental.compilation_cache import compilation_cache
import ml_collections
import pytest

from palign_jax import main
from palign_jax.core import jsonl
from tests import fakes
from tests.stages import victim


@dataclasses.dataclass(frozen=True)
class Run:
  """A config and where it ran."""

  config: ml_collections.ConfigDict
  path: pathlib.Path

  def rows(self, file: str) -> list[jsonl.Row]:
    """Returns a file's rows; none if it is empty."""
    path = self.path / file
    return jsonl.read(path) if path.stat().st_size else []


@pytest.fixture(scope='session')
def compiled(tmp_path_factory):
  """The folder of programs: runs apart compile the same again and again."""
  return str(tmp_path_factory.mktemp('programs'))


@pytest.fixture(scope='module', autouse=True)
def cache(compiled):
  """Keeps them, and off again afterwards, as tests/conftest.py has it."""
  names = {
      'jax_enable_compilation_cache': True,
      'jax_compilation_cache_dir': compiled,
      'jax_persistent_cache_min_compile_time_secs': 0.1,
  }
  before = {name: getattr(jax.config, name) for name in names}

  def update(values):
    for name, value in values.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()  # JAX looks once whether there is one.

  update(names)
  yield
  update(before)


@pytest.fixture(scope='session')
def student(tmp_path_factory):
  return fakes.model_folder(tmp_path_factory.mktemp('model') / 'student')


@pytest.fixture(scope='session')
def whole(tmp_path_factory, student, compiled) -> Run:
  """A run of all stages, LoRA, on one device in a process of its own."""
  folder = pathlib.Path(tmp_path_factory.mktemp('whole'))
  config = fakes.config(folder, student)
  assert victim.start(config, folder / 'run', compiled) == 0
  return Run(config, folder / 'run')


@pytest.fixture
def start(tmp_path, student):
  """Runs stages of a config with changes; the workdir is new."""

  def start(stages, files=None, num_traces=4, **changes) -> Run:
    config = fakes.config(tmp_path, student, num_traces)
    for name, value in changes.items():
      section, _, field = name.partition('__')
      config[section][field] = value
    run = Run(config, pathlib.Path(tmp_path) / 'run')
    for file, rows in (files or {}).items():
      jsonl.write(run.path / file, rows)
    main.run(config, run.path, stages)
    return run

  return start
