"""Rows on their way to a file: numbered parts, each written whole.

A row is safe once its part is written; after a kill only the rows since the
last part are computed again.  Parts are merged into the file at the end, in
the order of the input, so a resumed run writes the file of an unbroken one.
"""

from collections.abc import Callable, Iterable
import time

from etils import epath

from palign_jax.core import jsonl

_WRITE_EVERY_S = 20.0


class Parts:
  """Rows of one output file, <folder>/<file>.parts/00000.jsonl and on."""

  def __init__(
      self,
      file: epath.PathLike,
      *,
      key: Callable[[jsonl.Row], str],
      max_rows: int,
  ):
    """Reads the parts that are there.

    Args:
      file: What the parts become.
      key: Names a row; two rows of one name are the same.
      max_rows: Rows of a part; it is written sooner if it waits for long.
    """
    self._file = epath.Path(file)
    self._folder = self._file.with_name(self._file.name + '.parts')
    self._key, self._max_rows = key, max_rows
    self._done: dict[str, jsonl.Row] = {}
    parts = sorted(self._folder.glob('*.jsonl'))
    for part in parts:
      self._done.update({key(row): row for row in jsonl.read(part)})
    self._next = int(parts[-1].name.split('.')[0]) + 1 if parts else 0
    self._waiting: list[jsonl.Row] = []
    self._written_at = time.monotonic()

  def __contains__(self, name: str) -> bool:
    return name in self._done

  def __enter__(self) -> 'Parts':
    return self

  def __exit__(self, kind, *exc):
    self.flush()

  def add(self, row: jsonl.Row) -> None:
    """Takes a row; it is on disk after the next flush."""
    self._done[self._key(row)] = row
    self._waiting.append(row)
    waited_s = time.monotonic() - self._written_at
    if len(self._waiting) >= self._max_rows or waited_s >= _WRITE_EVERY_S:
      self.flush()

  def flush(self) -> None:
    """Writes the rows that wait as one part."""
    if self._waiting:
      jsonl.write(self._folder / f'{self._next:05d}.jsonl', self._waiting)
      self._waiting, self._next = [], self._next + 1
    self._written_at = time.monotonic()

  def rows(self, order: Iterable[str]) -> list[jsonl.Row]:
    """Returns the rows by name; every name must be there."""
    return [self._done[name] for name in order]

  def merge(self, rows: Iterable[jsonl.Row]) -> None:
    """Writes the final file and removes the parts."""
    self.flush()
    jsonl.write(self._file, rows)
    if self._folder.exists():
      self._folder.rmtree()
