"""The nearest change of a config with which every step fits.

Near is what changes least: how much is computed at a time (a batch that does
not split is rounded up), then the mesh, then what is trained.  A change counts
only once all its steps were compiled with it and fit.
"""

from collections.abc import Iterator, Mapping
import copy
import dataclasses
from typing import Any

from absl import logging

from palign_jax.core import errors
from palign_jax.models import remat
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.planning import (
    cases,
    steps as steps_lib,
    topology as topology_lib,
)
from palign_jax.stages import validation

Changes = dict[str, Any]  # Of fields by their path, as 'sft.batch_size'.
Made = dict[str, steps_lib.Step | errors.ConfigError]
_MOST = 16  # Compilations; each takes a minute or so.
_ROWS = 'compute.num_rows'
_LEAST_CHUNK = 128  # Positions whose logits exist at a time; judge tokens.


@dataclasses.dataclass
class Search:
  """A config, and what may be tried of it.

  Attributes:
    config: All fields, as plain nested mappings.
    topology: The slice.
    left: How many steps may still be compiled.
  """

  config: Mapping[str, Any]
  topology: topology_lib.Topology
  left: int = _MOST

  def case(self, changes: Changes) -> cases.Case:
    """Returns the case with these changes.

    Raises:
      ConfigError: If there can be none.
    """
    config = changed(self.config, changes)
    return cases.make(validation.read(config), self.topology)

  def make(self, changes: Changes, name: str):
    """Returns a step with these changes, or why main would refuse it."""
    self.left -= 1
    try:
      case = self.case(changes)
      told = f' with {told_of(changes)}' if changes else ''
      logging.info('Compiling %s%s.', name, told)
      return steps_lib.make(case, name)
    except errors.ConfigError as e:
      return e


def changed(config: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
  """Returns a copy of a config with other values at some paths."""
  config = copy.deepcopy(dict(config))
  for path, value in changes.items():
    *sections, field = path.split('.')
    place = config
    for section in sections:
      place = place[section]
    place[field] = value
  return config


def told_of(changes: Changes) -> str:
  """Returns changes as flags of main."""
  return ' '.join(f'--config.{k}={v}' for k, v in changes.items())


def fits(step: steps_lib.Step | errors.ConfigError) -> bool:
  """Returns whether a step can run."""
  return isinstance(step, steps_lib.Step) and step.fits


def nearest(search: Search, made: Made) -> tuple[Changes, Made] | None:
  """Returns what to change, and all steps with it; None if nothing is found.

  Args:
    search: The config.
    made: Its steps as they are, some of which do not fit.
  """
  found = _alone(search, {}, made)
  if found is not None:
    return found
  failing = [name for name in made if not fits(made[name])]
  for changes in _meshes(search):
    logging.info('Trying %s.', told_of(changes))
    first = {name: search.make(changes, name) for name in failing}
    found = _alone(search, changes, first)
    if found is not None:
      others = [name for name in made if name not in failing]
      if any(field.startswith('mesh.') for field in changes):
        rest = {name: search.make(found[0], name) for name in others}
      else:  # Nothing but training knows of it.
        rest = {name: made[name] for name in others}
      both = rest | found[1]
      found = _alone(search, found[0], {name: both[name] for name in made})
    if found is not None:
      return found
    if search.left <= 0:
      break
  return None


def _alone(
    search: Search, base: Changes, made: Made
) -> tuple[Changes, Made] | None:
  """Mends every step by fields that are its own; None if one cannot be."""
  changes, steps = dict(base), dict(made)
  rows = dict.fromkeys(made, base.get(_ROWS))  # That each was made with.
  # Decode takes more memory than prefill; what mends it mends both.
  for name in sorted(made, key=lambda name: 'decode' not in name):
    if _samples(name) and rows[name] != changes.get(_ROWS):
      steps[name] = search.make(changes, name)
      rows[name] = changes.get(_ROWS)
    if fits(steps[name]):
      continue
    for own in _own(search, changes, name, steps[name]):
      if search.left <= 0:
        return None
      tried = search.make(changes | own, name)
      if fits(tried):
        changes |= own
        steps[name] = tried
        rows[name] = changes.get(_ROWS)
        break
    else:
      return None
  for name in filter(_samples, made):
    if rows[name] != changes.get(_ROWS):  # Fewer than it was made with.
      steps[name] = search.make(changes, name)
  return (changes, steps) if all(map(fits, steps.values())) else None


def _samples(name: str) -> bool:
  return name.endswith(('prefill', 'decode'))


def _own(
    search: Search,
    changes: Changes,
    name: str,
    step: steps_lib.Step | errors.ConfigError,
) -> Iterator[Changes]:
  """Yields changes of fields that only this step reads, the nearest first."""
  case = search.case(changes)
  s, c = case.settings.sft, case.settings.compute
  if name == 'sft':
    at_once = c.rows_per_device * mesh_lib.num_row_shards(case.train_mesh)
    own: Changes = {}
    if s.batch_size % at_once:
      own['sft.batch_size'] = -(-s.batch_size // at_once) * at_once
      yield dict(own)
    policies = list(remat.NAMES)  # From what keeps most to what keeps least.
    for policy in policies[policies.index(s.remat) + 1 :]:
      own['sft.remat'] = policy
      yield dict(own)
    rows = c.rows_per_device
    while rows % 2 == 0:
      rows //= 2
      own['compute.rows_per_device'] = rows
      yield dict(own)
    if not c.loss_chunk or c.loss_chunk > _LEAST_CHUNK:
      yield own | {'compute.loss_chunk': _LEAST_CHUNK}
  elif name == 'judge':
    tokens = c.judge_tokens // 2
    while tokens >= _LEAST_CHUNK:
      yield {'compute.judge_tokens': tokens}
      tokens //= 4
  else:
    yield from _fewer(case, c.num_rows, step)


def _fewer(case: cases.Case, num: int, step) -> Iterator[Changes]:
  """Yields numbers of rows that may fit, the largest first."""
  if not isinstance(step, steps_lib.Step):  # They do not split.
    yield {_ROWS: -(-num // case.shards) * case.shards}
    return
  weights = step.held['weights']
  rest = max(step.need - weights, 1)
  share = (step.capacity - weights) / rest  # Of the rows, if all is theirs.
  rows = num
  while rows // 2 >= case.shards and rows // 2 % case.shards == 0:
    rows //= 2
    if rows <= num * share * 1.1:  # What is not theirs may be less.
      yield {_ROWS: rows}


def _meshes(search: Search) -> Iterator[Changes]:
  """Yields other meshes, then LoRA, then both; what splits least comes first.

  Heads are split before tokens: only training knows of the latter.
  """
  now = {'tensor': 1, 'sequence': 1} | dict(search.config['mesh'])
  now = {axis: max(int(now[axis]), 1) for axis in ('tensor', 'sequence')}
  slices = search.topology.num_slices  # Along data, each split alike.
  num = len(search.topology.devices) // slices
  for lora in (False, True):
    extra = {'sft.method': 'lora'} if lora else {}
    if lora:
      if search.config['sft']['method'] == 'lora':
        return
      yield extra
    for axis in ('tensor', 'sequence'):
      ways = now[axis]
      while (ways := ways * 2) <= num:
        split = now | {axis: ways}
        rest = num // (split['tensor'] * split['sequence'])
        changes = {f'mesh.{a}': n for a, n in split.items() if n > 1}
        changes |= {'mesh.data': slices, 'mesh.fsdp': rest, **extra}
        if rest and _possible(search, changes):
          yield changes


def _possible(search: Search, changes: Changes) -> bool:
  """Returns whether models split over a mesh."""
  try:
    case = search.case(changes)
    cases.check_host(case)
  except errors.ConfigError:
    return False
  ways = case.mesh.shape['tensor']
  models = [p.model for p in (case.student, case.teacher) if p]
  return not any(model.num_kv_heads % ways for model in models)
