"""A plan as text for people and as JSON for machines."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jax.sharding import Mesh

from palign_jax.core import errors
from palign_jax.planning import (
    cases,
    search as search_lib,
    steps as steps_lib,
    workload,
)

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """What came out.

  Attributes:
    case: The config as it is.
    made: Its steps, or why main would refuse them.
    nearest: What to change, the case with it, and its steps; None if all fits
      or nothing was found.
    benchmarks: Names of all, those without a file among them.
  """

  case: cases.Case
  made: search_lib.Made
  nearest: tuple[search_lib.Changes, cases.Case, search_lib.Made] | None
  benchmarks: Sequence[str]

  @property
  def fits(self) -> bool:
    """Whether the config as it is does."""
    return all(map(search_lib.fits, self.made.values()))

  @property
  def best(self) -> tuple[cases.Case, dict[str, steps_lib.Step]]:
    """The case that times are of: as it is, or with the nearest change."""
    case, made = self.case, self.made
    if self.nearest:
      _, case, made = self.nearest
    is_step = lambda x: isinstance(x, steps_lib.Step)
    return case, {name: s for name, s in made.items() if is_step(s)}

  @property
  def work(self) -> workload.Workload:
    """What the run has to do."""
    return workload.of(self.best[0], self.benchmarks)

  def seconds(self) -> dict[str, float]:
    """Returns how long each stage takes at least."""
    return workload.seconds(self.best[0], self.work, self.best[1])

  @property
  def refused(self) -> dict[str, errors.ConfigError]:
    """Steps that main would refuse: times are without them."""
    made = self.nearest[2] if self.nearest else self.made
    is_error = lambda x: isinstance(x, errors.ConfigError)
    return {name: step for name, step in made.items() if is_error(step)}

  @property
  def tokens_per_s(self) -> float:
    """Of training; of decoding where nothing is trained; 0 if unknown."""
    steps = self.best[1]
    names = ('sft', 'decode', 'teach_decode')
    rates = [steps[n].tokens_per_s for n in names if n in steps]
    return rates[0] if rates else 0.0

  @property
  def verdict(self) -> str:
    """One line."""
    topology = self.case.topology.title
    if self.fits:
      worst = max(self.made.values(), key=lambda s: s.need / s.capacity)
      share = worst.need / worst.capacity
      return f'FITS {topology}: {worst.name} takes most, {share:.0%} of HBM.'
    wrong = [n for n, s in self.made.items() if not search_lib.fits(s)]
    text = f'DOES NOT FIT {topology}: {", ".join(wrong)}.'
    if self.nearest is None:
      return f'{text} No nearer change than a larger slice was found.'
    flags = search_lib.told_of(self.nearest[0])
    return f'{text} Nearest change that does, compiled: {flags}'


def as_json(plan: Plan) -> dict[str, Any]:
  """Returns the plan as plain values.

  Of `steps`, bytes and FLOPs are one device's, for one step; tokens are all
  hosts' together.  Times are those of `nearest` where the config as it is
  does not fit (`times_of`), without steps that main would refuse (`without`).
  """
  topology = plan.case.topology
  seconds = plan.seconds()
  hours = sum(seconds.values()) / 3600
  nearest = None
  if plan.nearest:
    changes, _, made = plan.nearest
    nearest = {'changes': changes, 'steps': _steps(made)}
  return {
      'topology': topology.name,
      'chip': topology.chip.name,
      'slices': topology.num_slices,
      'devices': len(topology.devices),
      'hosts': plan.case.hosts,
      'mesh': dict(plan.case.train_mesh.shape),
      'fits': plan.fits,
      'verdict': plan.verdict,
      'steps': _steps(plan.made),
      'refused': {
          name: str(step)
          for name, step in plan.made.items()
          if isinstance(step, errors.ConfigError)
      },
      'nearest': nearest,
      'times_of': 'nearest' if plan.nearest else 'config',
      'without': list(plan.refused),
      'tokens_per_s': plan.tokens_per_s,
      'hours': hours,
      'chip_hours': hours * topology.num_chips,
      'stages': {name: s / 3600 for name, s in seconds.items()},
      'assumptions': list(plan.work.assumptions),
  }


def _steps(made: search_lib.Made) -> list[dict[str, Any]]:
  return [
      {
          'name': step.name,
          'fits': step.fits,
          'hbm_bytes': step.hbm_bytes,
          'hbm_capacity': step.capacity,
          'flops': step.flops,
          'model_flops': step.model_flops,
          'collective_bytes': step.collective_bytes,
          'roofline_s': step.roofline.seconds,
          'bounds_s': step.roofline.limits,
          'mfu_bound': step.mfu_bound,
          'limit': step.roofline.limit,
          'tokens_per_s': step.tokens_per_s,
          'note': step.note,
      }
      for step in made.values()
      if isinstance(step, steps_lib.Step)
  ]


def as_text(plan: Plan) -> str:
  """Returns the plan for people."""
  topology = plan.case.topology
  lines = [_where(plan.case), *_each_host(plan.case, plan.made), '']
  lines += _table(plan.made)
  if plan.nearest:
    changes, case, made = plan.nearest
    lines += ['', f'With {search_lib.told_of(changes)}']
    lines += [*_each_host(case, made), *_table(made)]
  seconds = plan.seconds()
  hours = sum(seconds.values()) / 3600
  stages = ', '.join(f'{n} {s / 3600:.2f}' for n, s in seconds.items())
  lines += [
      '',
      f'At least {hours:.2f} hours, {hours * topology.num_chips:.1f} chip-hours'
      f' ({stages}{_without(plan)}); {plan.tokens_per_s:,.0f} tokens/s, if:',
      *(f'- {assumption}' for assumption in plan.work.assumptions),
      '',
      plan.verdict,
  ]
  return '\n'.join(lines)


def _without(plan: Plan) -> str:
  """Returns what the times leave out."""
  return f'; without {", ".join(plan.refused)}' if plan.refused else ''


def _where(case: cases.Case) -> str:
  """Returns what the slice is, and the mesh on it."""
  topology, mesh, hosts = case.topology, case.train_mesh, case.hosts
  return (
      f'{topology.title}: {topology.num_chips} chips on {hosts}'
      f' host{"s" * (hosts > 1)}, {mesh.size} devices of'
      f' {topology.chip.usable / _GIB:.2f} GiB; mesh {_split(mesh)}'
  )


def _each_host(case: cases.Case, made: search_lib.Made) -> list[str]:
  """Returns what each of several hosts does by itself."""
  if case.hosts == 1 or set(made) == {'sft'}:
    return []
  return [
      'Each host judges and samples by itself, with'
      f' config.compute.num_rows={case.settings.compute.num_rows} of its own;'
      f' mesh {_split(case.mesh)}'
  ]


def _split(mesh: Mesh) -> str:
  return ' '.join(f'{axis}={size}' for axis, size in mesh.shape.items())


def _table(made: search_lib.Made) -> list[str]:
  """Returns one line per step; bytes and FLOPs of one device."""
  head = (
      f'{"step":14}{"weights":>8}{"optim.":>8}{"KV":>8}{"activ.":>8}'
      f'{"total":>8} GiB {"TFLOP":>9} {"s":>10} {"MFU<=":>6}'
      f' {"tokens/s<=":>11}  limit, GB sent by axis'
  )
  lines = [head]
  for name, step in made.items():
    if isinstance(step, errors.ConfigError):
      lines.append(f'{name:14}{step}')
      continue
    kinds = step.hbm_bytes
    order = ('weights', 'optimizer', 'kv', 'activations', 'total')
    sizes = ''.join(f'{kinds[kind] / _GIB:8.2f}' for kind in order)
    lines.append(
        f'{name:14}{sizes} {"   " if step.fits else "!!!"} '
        f'{step.flops / 1e12:9.3f} {step.roofline.seconds:10.4f}'
        f' {step.mfu_bound:6.1%} {step.tokens_per_s:11,.0f} '
        f' {step.roofline.limit}; {_sent(step.collective_bytes)}'
    )
    if step.note:
      lines.append(f'{"":14}({step.note})')
  return lines


def _sent(by_axis: Mapping[str, int] | None) -> str:
  if by_axis is None:
    return 'unknown'
  each = [f'{axis} {sent / 1e9:.3f}' for axis, sent in by_axis.items()]
  return ', '.join(each) or 'none'
