"""A run's folder: its config, its manifest, which stages are done.

A workdir serves one config.  Fields that cannot change results may differ, and
so may fields of stages that have not begun; anything else is refused.
"""

from collections.abc import Mapping, Sequence
import datetime
import json
import os
import pathlib
import re
import secrets
import shutil
from typing import Any

from absl import logging
from etils import epath

from palign_jax.core import errors, jsonl, parts as parts_lib

# Which stages a section of the config bears on, where it is not the section's
# own; sections of `FREE` bear on none.
_BEARS_ON = {
    'seed': ('teach', 'truncate', 'align', 'sft', 'sample', 'grade'),
    'prompts': ('teach', 'truncate', 'align', 'assemble', 'sft', 'sample'),
    'student': ('truncate', 'align', 'sft', 'sample'),
    'teacher': ('teach',),
    'benchmarks': ('sample', 'grade'),
}
# They cannot change results (but by rounding, and a manifest names them).
FREE = ('mesh', 'compute', 'report')
# Of those, what decides the shapes of programs and who computes: rows from
# before a change and from after it are equal within rounding, not bit for bit.
SHAPES = (
    'mesh',
    'compute.num_rows',
    'compute.judge_tokens',
    'compute.memory_gib',
    'compute.shared_trunk',
    'compute.prefill_tokens',
    'compute.group',
    'compute.rows_per_device',
    'compute.loss_chunk',
    'compute.attention',
)
# What jsonl.py and hf_export.py write beside their place, by process.
_HALF_WRITTEN = re.compile(r'\..+\.(\d+)\.(?:tmp|old)')


class Workdir:
  """<path>/ with config.json, manifest.json and a folder per stage."""

  def __init__(self, path: epath.PathLike, stages: Sequence[str]):
    """Args are the folder and the names of all stages, in order."""
    self.path = epath.Path(path)
    self._stages = tuple(stages)

  def __truediv__(self, name: str) -> epath.Path:
    return self.path / name

  def open(self, config: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Makes the folder for a config, or returns to it.

    Args:
      config: Nested mappings of plain values.
      facts: For the manifest: versions, devices, and `inputs`: by the name of
        a field, the hash of what it points to, which tells a moved folder from
        another and a file from what it was.

    Raises:
      ConfigError: If another config made it, or it cannot be written.
    """
    old = self._read('config.json')
    if old is not None:
      self._check(old, config, facts)
      self._sweep()
    now = _now()
    manifest = self._read('manifest.json') or {'created': now}
    inputs = {**manifest.get('inputs', {}), **facts.get('inputs', {})}
    changes = list(manifest.get('changes', ()))
    if old is not None and (
        change := self._change(old, manifest, config, facts)
    ):
      changes.append({'at': now, **change})
    manifest = {**manifest, **facts, 'inputs': inputs, 'updated': now}
    manifest['changes'] = changes
    manifest['token'] = secrets.token_hex(8)
    try:
      self._write('config.json', config)
      self._write('manifest.json', manifest)
    except errors.DataError as e:
      raise errors.ConfigError(
          f'--workdir={self.path} cannot be written: {e}'
      ) from e

  def note(self, change: Mapping[str, Any]) -> None:
    """Adds to the manifest's `changes` what became clear only under way.

    Args:
      change: `changed` and `rows`, as `open` writes them.
    """
    manifest = self._read('manifest.json') or {}
    changes = [*manifest.get('changes', ()), {'at': _now(), **change}]
    self._write('manifest.json', {**manifest, 'changes': changes})

  @property
  def token(self) -> str:
    """What the last `open` left in the manifest, different every time."""
    return (self._read('manifest.json') or {}).get('token', '')

  def finished(self, stage: str) -> bool:
    """Returns whether a stage has written its last file."""
    return (self.path / stage / 'summary.json').exists()

  def begun(self, stage: str) -> bool:
    """Returns whether a stage has written anything."""
    folder = self.path / stage
    return folder.exists() and any(folder.iterdir())

  def finish(self, stage: str, summary: Mapping[str, Any]) -> None:
    """Marks a stage as finished; only now its parts may go."""
    self._write(f'{stage}/summary.json', summary)
    self._drop_parts(stage)

  def summary(self, stage: str) -> dict[str, Any]:
    """Returns what a finished stage said of itself."""
    return self._read(f'{stage}/summary.json') or {}

  def _check(self, old, new, facts) -> None:
    was, now = flatten(old), flatten(new)
    hash_was = (self._read('manifest.json') or {}).get('inputs', {})
    hash_now = facts.get('inputs', {})
    refused = []
    for name in sorted(was.keys() | now.keys()):
      one, two = was.get(name), now.get(name)
      hashed = name in hash_was and name in hash_now
      if hashed and hash_was[name] == hash_now[name]:
        if one != two:
          logging.info('%s moved: what was at %r is at %r.', name, one, two)
      elif one == two and hashed and self._has_used(name):
        refused.append(f'{name} (what is at {one!r} has changed)')
      elif one != two and self._has_used(name):
        refused.append(f'{name} (there {one!r}, here {two!r})')
      elif one != two:
        logging.info('%s was %r, now %r.', name, one, two)
    if refused:
      raise errors.ConfigError(
          f'{self.path} belongs to a config with another {", ".join(refused)};'
          ' give a new --workdir.'
      )

  def _change(self, old, manifest, new, facts) -> dict[str, Any] | None:
    """Returns what changed that bears on the last bits of rows under way.

    The stages it names have rows of both kinds; `rows` of them are from before.
    """
    was, now = flatten(old), flatten(new)
    for name in ('devices', 'hosts'):
      now[name] = facts.get(name)
      was[name] = manifest.get(name, now[name])
    shapes = (*SHAPES, 'devices', 'hosts')
    changed = {
        name: [was.get(name), now.get(name)]
        for name in sorted(was.keys() | now.keys())
        if name.startswith(shapes) and was.get(name) != now.get(name)
    }
    under_way = [s for s in self._stages if self.begun(s)]
    rows = {s: self._num_rows(s) for s in under_way if not self.finished(s)}
    return {'changed': changed, 'rows': rows} if changed and rows else None

  def _num_rows(self, stage: str) -> int:
    """Returns how many rows of a stage are in parts."""
    return sum(map(parts_lib.num_rows, self._parts(stage)))

  def _parts(self, stage: str) -> list[epath.Path]:
    """Returns the folders of parts, of files at most one folder deep."""
    folder = self.path / stage
    if not folder.exists():
      return []
    return [*folder.glob('*.parts'), *folder.glob('*/*.parts')]

  def _drop_parts(self, stage: str) -> None:
    for folder in self._parts(stage):
      folder.rmtree()

  def _has_used(self, name: str) -> bool:
    """Returns whether a stage that a field bears on has begun."""
    section = name.split('.')[0]
    bears_on = _BEARS_ON.get(section, (section,))
    return section not in FREE and any(map(self.begun, bears_on))

  def _sweep(self) -> None:
    """Removes what processes that were killed had half written, or left."""
    for stage in filter(self.finished, self._stages):
      self._drop_parts(stage)
    if '://' in str(self.path):
      return
    for stage in self._stages:
      # Finished ones as well: a report is made anew.
      for path in list(pathlib.Path(self.path / stage).rglob('.*.*')):
        name = _HALF_WRITTEN.fullmatch(path.name)
        # In a container the number may be this process's own: of a life before,
        # as this one has written nothing yet.
        mine = name and int(name[1]) == os.getpid()
        if name and (mine or not _is_alive(int(name[1]))):
          shutil.rmtree(path) if path.is_dir() else path.unlink()

  def _read(self, name: str) -> dict[str, Any] | None:
    path = self.path / name
    if not path.exists():
      return None
    try:
      return json.loads(path.read_text())
    except ValueError as e:
      raise errors.DataError(
          f'{path}: no valid JSON ({e}); give a new --workdir.'
      ) from e

  def _write(self, name: str, value: Mapping[str, Any]) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    jsonl.write_text(self.path / name, text + '\n')


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns {'a.b': value} for nested mappings; tuples become lists."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      is_list = isinstance(value, list | tuple)
      flat[f'{prefix}{name}'] = list(value) if is_list else value
  return flat


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _is_alive(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    return True
  return True
