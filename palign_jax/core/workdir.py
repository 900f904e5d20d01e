"""A run's folder: its config, its manifest, which stages are done.

A workdir serves one config.  Fields that cannot change results may differ, and
so may fields of stages that have not begun; anything else is refused.
"""

from collections.abc import Mapping, Sequence
import datetime
import json
from typing import Any

from absl import logging
from etils import epath

from palign_jax.core import errors, jsonl

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
_MODEL_PATHS = ('student.path', 'teacher.path')


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
      facts: For the manifest: versions, devices, hashes of the inputs; those
        of `models` tell a moved model folder from another model.

    Raises:
      ConfigError: If another config made it, or it cannot be written.
    """
    old = self._read('config.json')
    if old is not None:
      self._check(old, config, facts)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    manifest = self._read('manifest.json') or {'created': now}
    try:
      self._write('config.json', config)
      self._write('manifest.json', {**manifest, **facts, 'updated': now})
    except errors.DataError as e:
      raise errors.ConfigError(
          f'--workdir={self.path} cannot be written: {e}'
      ) from e

  def finished(self, stage: str) -> bool:
    """Returns whether a stage has written its last file."""
    return (self.path / stage / 'summary.json').exists()

  def begun(self, stage: str) -> bool:
    """Returns whether a stage has written anything."""
    folder = self.path / stage
    return folder.exists() and any(folder.iterdir())

  def finish(self, stage: str, summary: Mapping[str, Any]) -> None:
    """Marks a stage as finished."""
    self._write(f'{stage}/summary.json', summary)

  def summary(self, stage: str) -> dict[str, Any]:
    """Returns what a finished stage said of itself."""
    return self._read(f'{stage}/summary.json') or {}

  def _check(self, old, new, facts) -> None:
    was, now = flatten(old), flatten(new)
    models = (self._read('manifest.json') or {}).get('models', {})
    refused = []
    for name in sorted(was.keys() | now.keys()):
      if was.get(name) == now.get(name):
        continue
      section = name.split('.')[0]
      bears_on = _BEARS_ON.get(section, (section,))
      if section in FREE or not any(map(self.begun, bears_on)):
        logging.info('%s was %r, now %r.', name, was.get(name), now.get(name))
        continue
      model = facts.get('models', {}).get(section)
      if name in _MODEL_PATHS and model and model == models.get(section):
        logging.info('%s moved: the same model is at %r.', name, now.get(name))
        continue
      refused.append(
          f'{name} (there {was.get(name)!r}, here {now.get(name)!r})'
      )
    if refused:
      raise errors.ConfigError(
          f'{self.path} belongs to a config with another {", ".join(refused)};'
          ' give a new --workdir.'
      )

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
