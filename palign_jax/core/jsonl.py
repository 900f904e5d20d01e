"""JSON Lines, read strictly and written whole.

A file appears under its name only when it is complete: it is written beside it
first and renamed (on an object store one put does the same).
"""

from collections.abc import Iterable, Mapping
import json
import os
from typing import Any

from etils import epath

from palign_jax.core import errors, stopping

Row = dict[str, Any]


def read(path: epath.PathLike) -> list[Row]:
  """Returns the rows of a JSON Lines file; blank lines are passed over.

  Raises:
    DataError: If the file is missing or empty, or a line is no JSON object;
      the message gives the line's number.
  """
  path = epath.Path(path)
  if not path.is_file():
    raise errors.DataError(f'{path}: no such file.')
  rows = []
  for number, line in enumerate(_decode(path).split('\n'), 1):
    if not line.strip():
      continue
    try:
      row = json.loads(line, parse_constant=_refuse)
    except json.JSONDecodeError as e:
      raise errors.DataError(
          f'{path}, line {number}: no valid JSON ({e.msg} at column'
          f' {e.colno}); each line must be one object.'
      ) from e
    if not isinstance(row, dict):
      raise errors.DataError(
          f'{path}, line {number}: a {type(row).__name__}; each line must be'
          ' one object.'
      )
    rows.append(row)
  if not rows:
    raise errors.DataError(f'{path}: the file has no rows.')
  return rows


def _refuse(name: str) -> None:
  raise json.JSONDecodeError(f'{name} is no JSON', name, 0)


def _decode(path: epath.Path) -> str:
  try:
    return path.read_bytes().decode('utf-8')
  except UnicodeDecodeError as e:
    raise errors.DataError(
        f'{path}: byte {e.start} is not UTF-8; save the file as UTF-8.'
    ) from e
  except OSError as e:
    raise errors.DataError(
        f'{path}: cannot be read ({e.strerror or e}).'
    ) from e


def dumps(row: Mapping[str, Any]) -> str:
  """Returns one line, without its end; NaN is refused, as JSON has none."""
  line = json.dumps(row, ensure_ascii=False, allow_nan=False)
  try:
    line.encode('utf-8')
  except UnicodeEncodeError:  # A lone surrogate is legal in JSON, not in UTF-8.
    return json.dumps(row, allow_nan=False)
  return line


def write(path: epath.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes all of `rows`, or leaves `path` as it was."""
  write_text(path, ''.join(dumps(row) + '\n' for row in rows))


def write_text(path: epath.PathLike, text: str) -> None:
  """Writes `text` whole, or leaves `path` as it was."""
  write_bytes(path, text.encode('utf-8'))


def write_bytes(path: epath.PathLike, data: bytes) -> None:
  """Writes `data` whole, or leaves `path` as it was.

  Raises:
    DataError: If the place cannot be written (no room, no permission).
    Stopped: If the process was told to end meanwhile; it is written.
  """
  path = epath.Path(path)
  # An object that is left by an exception would be put as far as it got.
  with stopping.later():
    _write(path, data)
  stopping.check()


def _write(path: epath.Path, data: bytes) -> None:
  try:
    if '://' in str(path):
      path.write_bytes(data)
      return
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
    try:
      with open(beside, 'wb') as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
      os.replace(beside, path)
    finally:
      beside.unlink(missing_ok=True)
  except OSError as e:
    raise errors.DataError(
        f'{path}: cannot be written ({e.strerror or e}); nothing in its place'
        ' was changed.'
    ) from e
