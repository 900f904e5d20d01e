"""Says whether a run fits a TPU slice, and how fast, before one is rented.

  python -m palign_jax.plan --config=configs/qwen2_5_7b.py --topology=v5p:4x4x4

Compiles what main would run there, with libtpu and no TPU; needs neither
weights nor data.  Exits with 0 if the run fits, 3 if it does not, 1 if it
cannot be told.
"""

from collections.abc import Sequence
import json
import sys

from absl import app, flags
from etils import epath
import jax
from ml_collections import config_flags

from palign_jax.core import command, errors
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.planning import (
    cases,
    report,
    search as search_lib,
    steps,
    topology as topology_lib,
)

DOES_NOT_FIT = 3


def make(
    config, topology: str, *, only: Sequence[str] = (), search: bool = True
) -> report.Plan:
  """Returns the plan of a config on a slice.

  Args:
    config: A ConfigDict as the files in configs/ make it.
    topology: Chip and shape of a slice; config.mesh.dcn_data says how many.
    only: Names of steps; all if empty.
    search: Whether to look for a change with which all fits.

  Raises:
    PalignError: If something must be mended first.
  """
  plain = config.to_dict()
  slices = int(plain.get('mesh', {}).get(mesh_lib.SLICES, 1))
  tries = search_lib.Search(plain, topology_lib.describe(topology, slices))
  case = tries.case({})
  names = _chosen(only, steps.names(case))
  if set(names) != {'sft'}:
    cases.check_host(case)
  made = {name: tries.make({}, name) for name in names}
  nearest = None
  if search and not all(map(search_lib.fits, made.values())):
    if found := search_lib.nearest(tries, made):
      changes, remade = found
      nearest = changes, tries.case(changes), remade
  return report.Plan(case, made, nearest, tuple(plain.get('benchmarks') or ()))


def _chosen(only: Sequence[str], names: Sequence[str]) -> list[str]:
  """Returns the steps to compile, in their order."""
  if unknown := [name for name in only if name not in names]:
    raise errors.ConfigError(
        f'--steps={",".join(only)}: no step {", ".join(unknown)}; those of this'
        f' run are {", ".join(names)}.'
    )
  return [name for name in names if not only or name in only]


def _define_flags() -> None:
  """Defines what `main` reads; only here, as main.py has a --config too."""
  config_flags.DEFINE_config_file(
      'config', None, 'One of configs/*.py, as file.py or file.py:arg.'
  )
  flags.DEFINE_string(
      'topology',
      None,
      'Chip and shape of the slice, as v5e:4x4 or v5p:4x4x4; of several,'
      ' config.mesh.dcn_data says how many.',
  )
  flags.DEFINE_string('json', None, 'Where to write it for machines.')
  flags.DEFINE_list(
      'steps',
      [],
      'Which steps to compile (judge, decode, ...); all if not given.',
  )
  flags.DEFINE_bool(
      'search', True, 'Whether to look for a change with which it fits.'
  )


def main(argv: list[str]):
  """Plans what the flags say."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  command.quiet_libraries()
  with command.one_line_errors():
    given = flags.FLAGS
    file = epath.Path(given.json) if given.json else None
    if file and not file.parent.exists():
      raise errors.ConfigError(
          f'--json={file}: there is no folder {file.parent}; make it first.'
      )
    plan = make(
        given.config, given.topology, only=given.steps, search=given.search
    )
    print(report.as_text(plan))
    if file:
      file.write_text(json.dumps(report.as_json(plan), indent=2) + '\n')
  sys.exit(0 if plan.fits else DOES_NOT_FIT)


if __name__ == '__main__':
  _define_flags()
  # A TPU of this machine, if it has one, is left alone.
  jax.config.update('jax_platforms', 'cpu')
  # What it returns was not dumped by XLA; see planning/measure.py.
  jax.config.update('jax_enable_compilation_cache', False)
  jax.config.config_with_absl()
  flags.mark_flags_as_required(['config', 'topology'])
  app.run(main, flags_parser=command.parse)
