"""Which request sits where: requests wait by prompt, and take free slots.

Slots lie on groups of devices (shards), and nothing moves between these.  A
prompt is read once per shard: requests with the same one go where it lies, and
it is not overwritten while one of them waits.
"""

import collections
from collections.abc import Iterable
import dataclasses

from palign_jax.sampling import rows as rows_lib


@dataclasses.dataclass
class Reading:
  """A prompt that is being read into a slot."""

  row: rows_lib.Row
  slot: int
  num_read: int = 0

  @property
  def length(self) -> int:
    """How much of the prompt is to be read: all but its last token."""
    return len(self.row.request.tokens) - 1

  @property
  def left(self) -> int:
    """How many tokens are still to be read."""
    return self.length - self.num_read


class Slots:
  """Slots, some with rows, and the rows that wait for one."""

  def __init__(
      self,
      rows: Iterable[rows_lib.Row],
      size: int,
      num_shards: int,
      group: int,
  ):
    """Begins with empty slots.

    Args:
      rows: All that wait.
      size: How many slots there are.
      num_shards: How many groups of devices they lie on, evenly.
      group: How many neighbours are attended together; see attend.py.
    """
    self.num_shards, self._group = num_shards, group
    self.rows: list[rows_lib.Row | None] = [None] * size
    self.reading: list[Reading | None] = [None] * num_shards
    self._prompts: list[object] = [None] * size  # What lies in each slot.
    alike: dict[tuple[int, ...], list[rows_lib.Row]] = {}
    for row in rows:
      alike.setdefault(row.request.tokens, []).append(row)
    # Many samples of one prompt are split, so that all shards have work.
    most = self.per_shard
    self._waiting = collections.deque(
        collections.deque(group[i : i + most])
        for group in alike.values()
        for i in range(0, len(group), most)
    )
    self._own = [collections.deque() for _ in range(num_shards)]

  @property
  def size(self) -> int:
    """How many slots there are."""
    return len(self.rows)

  @property
  def per_shard(self) -> int:
    """How many slots a shard has."""
    return self.size // self.num_shards

  @property
  def num_live(self) -> int:
    """How many rows are decoded."""
    return sum(row is not None for row in self.rows)

  @property
  def queued(self) -> bool:
    """Whether anything waits or is being read."""
    return bool(self._waiting) or any(self._own) or any(self.reading)

  def live(self) -> list[tuple[int, rows_lib.Row]]:
    """Returns the slots of rows that are decoded, and the rows."""
    return [(i, row) for i, row in enumerate(self.rows) if row is not None]

  def shard(self, shard: int) -> range:
    """Returns the slots of a shard."""
    return range(shard * self.per_shard, (shard + 1) * self.per_shard)

  def admit(self, shard: int) -> tuple[int, int | None] | None:
    """Puts the next row of a shard into a slot, if its prompt lies there.

    If the prompt must be read first, `reading` holds it.

    Returns:
      The slot and, if its prompt is to be copied, from which; or None.
    """
    if self.reading[shard] is not None:
      return None
    free = [i for i in self.shard(shard) if self.rows[i] is None]
    own = self._own[shard]
    if not own and free and self._waiting:
      own = self._own[shard] = self._waiting.popleft()
    if not own or not free:
      return None
    row = own.popleft()
    prompt = row.request.tokens
    there = [i for i in self.shard(shard) if self._prompts[i] == prompt]
    slot = next((i for i in there if i in free), None)
    source = None
    if slot is None:
      slot = min(free, key=self._reach)
      source = there[0] if there else None
      if source is None and len(prompt) > 1:
        self._prompts[slot] = None
        self.reading[shard] = Reading(row, slot)
        return None
    self.rows[slot], self._prompts[slot] = row, prompt
    return slot, source

  def _reach(self, slot: int) -> int:
    """Returns how far the rows that are attended together with a slot are."""
    first = slot - slot % self._group
    rows = self.rows[first : first + self._group]
    length = lambda row: len(row.request.tokens) + len(row.tokens)
    return max((length(row) for row in rows if row), default=0)

  def has_read(self, shard: int, num: int) -> int | None:
    """Counts tokens read; returns the slot if its row is now to be decoded."""
    reading = self.reading[shard]
    reading.num_read += num
    if reading.left > 0:
      return None
    self.reading[shard] = None
    self.rows[reading.slot] = reading.row
    self._prompts[reading.slot] = reading.row.request.tokens
    return reading.slot

  def leave(self, slot: int) -> None:
    """Frees a slot; the prompt in it stays for others."""
    self.rows[slot] = None

  def most_live(self) -> int:
    """Returns how many rows are decoded on the fullest shard."""
    return max(
        sum(self.rows[i] is not None for i in self.shard(shard))
        for shard in range(self.num_shards)
    )

  def shrink(self, size: int) -> list[int]:
    """Keeps fewer slots, with all rows; nothing may be queued.

    Returns:
      For each new slot which slot of the same shard it was, as the shard
      numbers them.
    """
    each, keep = size // self.num_shards, []
    for shard in range(self.num_shards):
      slots = sorted(self.shard(shard), key=lambda i: self.rows[i] is None)
      keep.append(slots[:each])
    self.rows = [self.rows[i] for slots in keep for i in slots]
    local = [
        i - shard * len(self._prompts) // self.num_shards
        for shard, slots in enumerate(keep)
        for i in slots
    ]
    self._prompts = [None] * size
    return local
