"""Rows on their way to a file: numbered parts, each written whole.

A row is safe once its part is written; after a kill only the rows since the
last part are computed again.  Each process writes parts of its own, which bear
its number; all read all.  At the end process 0 merges them into the file, in
the order of the input, so a resumed run, and one on many hosts, writes the
file of an unbroken one.  The parts go when the stage is finished.
"""

from collections.abc import Callable, Iterable
import hashlib
import json
import time
from typing import Any

from etils import epath

from palign_jax.core import errors, jsonl, peers as peers_lib

_WRITE_EVERY_S = 20.0
_SHOW_UP_S = 90.0  # How long a network disk may hide what another host wrote.
# The last line of a part: what its rows took, beside how many they are.
_TALLY = '_tally'

Tally = dict[str, float | int]


class Parts:
  """Rows of one output file, <folder>/<file>.parts/<process>-00000.jsonl."""

  def __init__(
      self,
      file: epath.PathLike,
      *,
      key: Callable[[jsonl.Row], str],
      max_rows: int,
      peers: peers_lib.Peers,
  ):
    """Reads the parts that are there.

    Args:
      file: What the parts become.
      key: Names a row; two rows of one name are the same.
      max_rows: Rows of a part; it is written sooner if it waits for long.
      peers: The processes that write parts.
    """
    self._file = epath.Path(file)
    self._folder = folder(file)
    self._key, self._max_rows, self._peers = key, max_rows, peers
    self._done: dict[str, jsonl.Row] = {}
    self._tallies: dict[str, Tally] = {}  # By part.
    self._num_rows: dict[str, int] = {}  # By part.
    for name in _names(self._folder):
      self._read(name)
    own = [name for name in self._tallies if name.startswith(self._prefix)]
    self._next = max(map(_number, own), default=-1) + 1
    self._waiting: list[jsonl.Row] = []
    self._counts: Tally = {}
    self._written_at = self._counted_at = time.monotonic()

  def __contains__(self, name: str) -> bool:
    return name in self._done

  def __enter__(self) -> 'Parts':
    return self

  def __exit__(self, kind, *exc):
    self.flush()

  def add(self, row: jsonl.Row, **counts: float | int) -> None:
    """Takes a row; it is on disk after the next flush.

    Args:
      row: The row.
      **counts: What it took, say tokens; they add up over rows.

    Raises:
      Stopped: If the process is to end; the row is in good hands.
      PeerError: If another process has failed.
    """
    self._done[self._key(row)] = row
    self._waiting.append(row)
    for name, number in counts.items():
      self._counts[name] = self._counts.get(name, 0) + number
    waited_s = time.monotonic() - self._written_at
    if len(self._waiting) >= self._max_rows or waited_s >= _WRITE_EVERY_S:
      self.flush()
    self._peers.check()

  def flush(self) -> None:
    """Writes the rows that wait as one part."""
    now = time.monotonic()
    if self._waiting:
      tally = {**self._counts, 'seconds': round(now - self._counted_at, 3)}
      name = f'{self._prefix}{self._next:05d}.jsonl'
      jsonl.write(self._folder / name, [*self._waiting, {_TALLY: tally}])
      self._tallies[name], self._num_rows[name] = tally, len(self._waiting)
      self._waiting, self._next = [], self._next + 1
      self._counts, self._counted_at = {}, now
    self._written_at = now

  def gather(self) -> None:
    """Waits until all processes have written their rows, and reads them."""
    self.flush()
    known = self._peers.gather(
        sorted(self._tallies), at=f'rows of {self._file}'
    )
    for name in sorted(set().union(*known) - self._tallies.keys()):
      _show_up(self._folder / name)
      self._read(name)

  def rows(self, order: Iterable[str]) -> list[jsonl.Row]:
    """Returns the rows by name; every name must be there."""
    return [self._done[name] for name in order]

  def merge(self, rows: Iterable[jsonl.Row]) -> None:
    """Writes the final file, from process 0; the others wait for it."""
    if not self._peers.index:
      jsonl.write(self._file, rows)
    self._peers.gather(None, at=f'merged {self._file}')
    _show_up(self._file)

  def totals(self) -> Tally:
    """Returns what all rows took, over all sessions.

    Counts add up over processes; `seconds` are those of the slowest.
    """
    return _totals(self._tallies)

  def num_before(self, counts: Iterable[str]) -> int:
    """Returns how many rows were written before any of these was counted.

    Each process's own rows, up to the first part in which it counted one.
    """
    total, over = 0, set()
    for name, tally in sorted(self._tallies.items()):
      process = name.partition('-')[0]
      if any(tally.get(count) for count in counts):
        over.add(process)
      if process not in over:
        total += self._num_rows[name]
    return total

  @property
  def _prefix(self) -> str:
    return f'{self._peers.index:03d}-'

  def _read(self, name: str) -> None:
    *rows, last = jsonl.read(self._folder / name)
    if last.keys() == {_TALLY}:
      self._tallies[name] = last[_TALLY]
    else:  # Of a version that did not count.
      self._tallies[name] = {}
      rows.append(last)
    self._num_rows[name] = len(rows)
    self._done.update({self._key(row): row for row in rows})


def folder(file: epath.PathLike) -> epath.Path:
  """Returns where the parts of a file are."""
  file = epath.Path(file)
  return file.with_name(file.name + '.parts')


def name(number: int, content: Any) -> str:
  """Returns a name for what comes of a row that may have none of its own.

  Args:
    number: Of the row.
    content: JSON of what its result follows from: if that is changed by hand,
      the results in the parts are no longer taken.
  """
  text = json.dumps(content, sort_keys=True)
  return f'{number}/{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}'


def totals(file: epath.PathLike) -> Tally:
  """Returns `Parts.totals` of a file that has been merged."""
  place, tallies = folder(file), {}
  for name in _names(place):
    tallies[name] = jsonl.read(place / name)[-1].get(_TALLY, {})
  return _totals(tallies)


def num_rows(place: epath.Path) -> int:
  """Returns how many rows the parts in a folder hold."""
  files = [jsonl.read(place / name) for name in _names(place)]
  return sum(row.keys() != {_TALLY} for rows in files for row in rows)


def add_up(tallies: Iterable[Tally]) -> Tally:
  """Returns the sums by name."""
  sums: Tally = {}
  for tally in tallies:
    for name, number in tally.items():
      sums[name] = sums.get(name, 0) + number
  return sums


def _totals(tallies: dict[str, Tally]) -> Tally:
  by_process: dict[str, list[Tally]] = {}
  for name, tally in tallies.items():
    by_process.setdefault(name.partition('-')[0], []).append(tally)
  sums = [add_up(some) for some in by_process.values()]
  total = add_up(sums)
  if sums:
    total['seconds'] = max(each.get('seconds', 0) for each in sums)
  return total


def _names(place: epath.Path) -> list[str]:
  return sorted(p.name for p in place.glob('*.jsonl')) if place.exists() else []


def _number(name: str) -> int:
  return int(name.removesuffix('.jsonl').rpartition('-')[2])


def _show_up(path: epath.Path) -> None:
  """Waits for what another host says it has written."""
  until = time.monotonic() + _SHOW_UP_S
  while not path.exists():
    if time.monotonic() > until:
      raise errors.DataError(
          f'{path}: another host has written it and this one does not see it;'
          ' give a --workdir that all hosts share.'
      )
    time.sleep(1)
