"""Runs the stages of a config in one workdir.

  python -m palign_jax.main --config=configs/quickstart.py --workdir=runs/q

This file reads flags, opens the workdir and hands over.  A finished stage is
not run again; an interrupted one goes on where it stopped.
"""

from collections.abc import Sequence
import hashlib
import importlib
import importlib.metadata
import platform

from absl import app, flags, logging
from etils import epath
import jax
from ml_collections import config_flags

from palign_jax.checkpoints import folders
from palign_jax.core import (
    command,
    errors,
    peers as peers_lib,
    stopping,
    stores,
    workdir as workdir_lib,
)
from palign_jax.data import questions as questions_lib
from palign_jax.parallel import compiled, hosts, peers as peers_of_run
from palign_jax.stages import (
    context as context_lib,
    settings as settings_lib,
    validation,
)

STAGES = (
    'teach',
    'truncate',
    'align',
    'assemble',
    'sft',
    'sample',
    'grade',
    'report',
)
_READERS = {
    'teacher': ('teach',),
    'student': ('truncate', 'align', 'sft', 'sample'),
}
_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'transformers')

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'One of configs/*.py, as file.py or file.py:arg.'
)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Where results go; runs/<config name> if not given.'
)
_STAGES = flags.DEFINE_list(
    'stages', list(STAGES), 'Which stages to run; all if not given.'
)


def chosen(names: Sequence[str]) -> list[str]:
  """Returns the stages in their order.

  Raises:
    ConfigError: If a name is unknown.
  """
  unknown = [name for name in names if name not in STAGES]
  if unknown or not names:
    raise errors.ConfigError(
        f'--stages={",".join(names)}: no stage {", ".join(unknown)!r}; the'
        f' stages are {", ".join(STAGES)}.'
    )
  return [name for name in STAGES if name in names]


def run(
    config,
    workdir: epath.PathLike,
    stages: Sequence[str],
    peers: peers_lib.Peers | None = None,
) -> None:
  """Runs stages of a config.

  Args:
    config: A ConfigDict as the files in configs/ make it.
    workdir: Where results go.
    stages: Names of `STAGES`.
    peers: The processes that run them; None for this one alone.

  Raises:
    PalignError: If something must be mended first; what was written stays.
    Stopped: If the process was told to end; what it had done is written.
  """
  peers = peers or peers_lib.Alone()
  stages = chosen(stages)
  settings = validation.read(config.to_dict())
  place = workdir_lib.Workdir(workdir, STAGES)
  context = context_lib.Context(settings, place, peers)
  # A report is of whatever is there, so it is made anew.
  todo = [s for s in stages if s == 'report' or not place.finished(s)]
  modules = {
      stage: importlib.import_module(f'palign_jax.stages.{stage}')
      for stage in todo
  }
  _open(place, config, settings, todo, peers)
  for stage in todo:  # All that can fail early, before the first long step.
    modules[stage].check(context)
  for stage in stages:
    if stage not in todo:
      logging.info('%s is finished already.', stage)
      continue
    logging.info('%s in %s, on %s.', stage, place.path, jax.devices())
    peers.check()
    summary = modules[stage].run(context)
    # What finishing sweeps away, others may still be reading.
    peers.gather(None, at=f'ran {stage}')
    if not peers.index:
      place.finish(stage, summary)
    logging.info('%s: %s', stage, summary)
    peers.gather(None, at=f'finished {stage}')


def _open(place, config, settings, todo, peers: peers_lib.Peers) -> None:
  """Opens the workdir, in process 0; raises if others do not see it."""
  token = ''
  if not peers.index:
    place.open(config.to_dict(), facts(settings, todo))
    token = place.token
  token = peers.gather(token, at=f'stages {",".join(todo)}')[0]
  if place.token != token:
    raise errors.ConfigError(
        f'--workdir={place.path} is not the folder that process 0 has opened;'
        f' {peers.count} processes need one that all of them share.'
    )


def facts(
    settings: settings_lib.Settings, stages: Sequence[str]
) -> dict[str, object]:
  """Returns what the manifest says of versions, devices and inputs.

  Args:
    settings: The config.
    stages: Which are to run; a model that none of them reads may be absent.
  """
  inputs = {}
  for which, readers in _READERS.items():
    path = getattr(settings, which).path
    if path and (set(readers) & set(stages) or epath.Path(path).is_dir()):
      inputs[f'{which}.path'] = folders.content_hash(folders.stage(path))
  files = {
      'teach.questions': settings.teach.questions,
      'teach.traces': settings.teach.traces,
      'truncate.calibration_rows': settings.truncate.calibration_rows,
      **{f'benchmarks.{k}': v for k, v in settings.benchmarks.items()},
  }
  for name, file in files.items():
    path, field = questions_lib.locate(file or '')
    if file and path.is_file():
      digest = hashlib.blake2b(path.read_bytes(), digest_size=16)
      digest.update(f'#{field}'.encode())
      inputs[name] = digest.hexdigest()
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
      'versions': {'python': platform.python_version(), **versions},
      'devices': [f'{d.platform}: {d.device_kind}' for d in jax.devices()],
      'hosts': jax.process_count(),
      'seed': settings.seed,
      'inputs': inputs,
  }


def main(argv: list[str]):
  """Runs what the flags say; an error that can be mended is one line."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  default = epath.Path('runs') / epath.Path(name).stem
  command.quiet_libraries()
  with command.one_line_errors():
    stores.see_what_is_there()
    hosts.join()
    stopping.listen()
    compiled.keep()
    with peers_of_run.joined() as peers:
      run(_CONFIG.value, _WORKDIR.value or default, _STAGES.value, peers)


if __name__ == '__main__':
  jax.config.config_with_absl()
  flags.mark_flag_as_required('config')
  app.run(main, flags_parser=command.parse)
