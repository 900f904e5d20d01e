"""Log-odds of two tokens after many prefixes of each of many texts.

All prompts of a trace begin alike: they are forks of one trunk.  A trunk's
tokens are read once, in chunks, and only as far as a fork leaves it; its keys
and values stay.  A fork reads its own few tokens beside them.

Rows share programs and nothing else.  A chunk begins at a multiple of its
width, and what a row does not see changes none of its bits; so scores depend
neither on company nor on order, in programs of equal shapes bit for bit.
"""

from collections.abc import Sequence
import dataclasses

from absl import logging
import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike
import numpy as np

from palign_jax.core import errors
from palign_jax.judging import programs as programs_lib
from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import memory, mesh as mesh_lib

_CHUNK = programs_lib.CHUNK


@dataclasses.dataclass(frozen=True)
class Probe:
  """A fork of a trunk, and the two tokens between which it must go on.

  Attributes:
    trunk: Which of the batch's trunks.
    anchor: How many tokens of it are seen.
    tokens: What follows them, at least one token.
    yes: A token.
    no: Another.
  """

  trunk: int
  anchor: int
  tokens: Sequence[int]
  yes: int
  no: int


class TrunkScorer:
  """Scores forks of trunks with one model."""

  def __init__(
      self,
      params: decoder.Params,
      config: config_lib.ModelConfig,
      *,
      mesh: Mesh,
      dtype: DTypeLike,
      budget: int | None,
      judge_tokens: int,
      max_rows: int = 64,
      lora_scale: float = 0.0,
      attention: str = 'auto',
  ):
    """Takes the weights as they lie on the mesh; nothing is compiled yet.

    Args:
      params: Weights; stacked ones are copied layer by layer.
      config: The model.
      mesh: Trunks lie over its data and fsdp axes, heads over tensor.
      dtype: Of the computation and of what is kept.
      budget: Bytes of a device that weights, trunks and programs may take
        together; None for no bound.
      judge_tokens: Tokens read together by a group of devices that holds one
        copy of the rows (mesh.tensor), padding included.
      max_rows: Trunks kept at once by such a group.
      lora_scale: alpha / rank of the adapters.
      attention: Who computes it, one of `kernels.NAMES`.

    Raises:
      ConfigError: If heads do not split over the mesh.
    """
    ways = mesh.shape['tensor']
    if config.num_kv_heads % ways:
      raise errors.ConfigError(
          f'config.mesh.tensor is {ways} and the model has'
          f' {config.num_kv_heads} key-value heads, which do not split so;'
          f' take a divisor of {config.num_kv_heads}.'
      )
    self.programs = programs_lib.Programs(
        params,
        config,
        mesh=mesh,
        dtype=dtype,
        judge_tokens=judge_tokens,
        lora_scale=lora_scale,
        attention=attention,
    )
    self._budget, self._max_rows = budget, max_rows
    self._fits: dict[int, int] = {}
    self.num_tokens = 0  # Read so far, without padding.

  def groups(self, lengths: Sequence[int]) -> list[list[int]]:
    """Returns which trunks to open together, by index.

    Those of a group have about the same length and fit the budget together.

    Args:
      lengths: Of each trunk, in tokens.

    Raises:
      ConfigError: If one alone does not fit.
    """
    by_capacity: dict[int, list[int]] = {}
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
      by_capacity.setdefault(programs_lib.capacity(lengths[i]), []).append(i)
    groups = []
    for size, indices in by_capacity.items():
      wanted = -(-len(indices) // self.programs.num_shards)
      most = self.programs.num_shards * self.fitting(
          size, min(wanted, self._max_rows)
      )
      num = -(-len(indices) // most)  # Groups of about the same size.
      each = -(-len(indices) // num)
      groups += [indices[i : i + each] for i in range(0, len(indices), each)]
    return groups

  def fitting(self, size: int, wanted: int) -> int:
    """Returns how many trunks of a capacity each row shard may keep.

    A program is compiled and asked what it needs.

    Args:
      size: As of `capacity`.
      wanted: At most so many.

    Raises:
      ConfigError: If not even one.
    """
    num = _power(wanted)
    if self._budget is None:
      return num
    if size in self._fits:
      return min(num, self._fits[size])
    row = memory.per_device(self.programs.abstract_cache(1, size)) // 2
    weights = memory.per_device(self.programs.params)
    room = self._budget - weights
    while num >= 1:
      if (num + 1) * row <= room:
        used = self._used(num, size)
        if used is not None and used <= self._budget:
          break
        logging.info(
            '%d trunks of %d tokens need more than %.2f GiB: fewer at once.',
            num,
            size,
            self._budget / memory.GIB,
        )
      num //= 2
    if not num:
      raise errors.ConfigError(
          f'config.compute.memory_gib: {self._budget / memory.GIB:.2f} GiB do'
          f' not hold the weights ({weights / memory.GIB:.2f}), one trunk of'
          f' {size} tokens ({row / memory.GIB:.2f}) and the memory to read it;'
          ' raise it, lower config.compute.judge_tokens, or split the model'
          ' with config.mesh.tensor.'
      )
    if num < _power(wanted):
      self._fits[size] = num
    return num

  def _used(self, num_rows: int, size: int) -> int | None:
    """Returns what the greediest program needs; None if XLA has no room."""
    try:
      trunks = memory.needed(self.programs.greediest_trunks(num_rows, size))
      if self.holds_any_fork(num_rows, size):
        return trunks
      forks = self.programs.greediest_forks(num_rows, size)
      return max(trunks, *map(memory.needed, forks))
    except memory.OutOfMemory:
      return None

  def holds_any_fork(self, num_rows: int, size: int) -> bool:
    """Returns whether the budget holds any program of forks; compiles none.

    Args:
      num_rows: Trunks of a row shard.
      size: As of `capacity`.
    """
    return self.programs.most_for_forks(num_rows, size) <= self._budget

  def narrow(self) -> bool:
    """See `Programs.narrow`."""
    return self.programs.narrow()

  def open(self, trunks: Sequence[Sequence[int]]) -> 'Batch':
    """Returns a batch of trunks, none of them read yet.

    Raises:
      OutOfMemory: If the device has no room for them.
    """
    return Batch(self, trunks)


def _power(number: int) -> int:
  """Returns the power of two from `number` on."""
  return 1 << max(number - 1, 0).bit_length()


class Batch:
  """Trunks on the devices, each read as far as it was asked for."""

  def __init__(self, scorer: TrunkScorer, trunks: Sequence[Sequence[int]]):
    """Takes room for the trunks; see `TrunkScorer.open`."""
    self._scorer, self._programs = scorer, scorer.programs
    self._trunks = [np.asarray(trunk, np.int32) for trunk in trunks]
    self._size = programs_lib.capacity(max(map(len, self._trunks), default=1))
    shards = self._programs.num_shards
    # Trunk i is row i // shards of shard i % shards: by length they are even.
    self._num_rows = _power(-(-len(trunks) // shards))
    self._read = np.zeros(len(trunks), np.int64)  # Chunks of each so far.
    self._open()

  def _open(self) -> None:
    with memory.guard():
      self._cache = self._programs.new_cache(self._num_rows, self._size)

  def release(self) -> None:
    """Lets go of what was read; the next probes read their trunks anew."""
    self._cache = None
    self._read[:] = 0

  def score(self, probes: Sequence[Probe]) -> np.ndarray:
    """Returns log p(yes) - log p(no) of each, float32, in nats.

    Raises:
      OutOfMemory: If the device had no room; the batch is lost then.
    """
    for probe in probes:
      if probe.anchor > len(self._trunks[probe.trunk]):
        raise ValueError(f'{probe}: its trunk ends before the anchor.')
    if self._cache is None:
      self._open()
    with memory.guard():
      self._grow(probes)
      margins = self._forks(probes)
    if not np.all(np.isfinite(margins)):
      raise errors.DataError(
          f'{np.sum(~np.isfinite(margins))} of {len(margins)} verdicts are not'
          f' finite in {self._programs.dtype}; take another'
          ' config.student.dtype (bfloat16, float32), or look whether the'
          ' weights are whole.'
      )
    return margins

  def _grow(self, probes: Sequence[Probe]) -> None:
    """Reads each trunk to the furthest place where a probe leaves it."""
    goal = np.zeros_like(self._read)
    for probe in probes:
      chunks = -(-probe.anchor // _CHUNK)
      goal[probe.trunk] = max(goal[probe.trunk], chunks)
    while (behind := np.flatnonzero(self._read < goal)).size:
      # The hindmost first: rows of a program read about as far back.
      order = behind[np.argsort(self._read[behind], kind='stable')]
      self._chunk(order)

  def _chunk(self, order: np.ndarray) -> None:
    """Reads a chunk of as many of these trunks as a program has rows."""
    programs, shards = self._programs, self._programs.num_shards
    wanted = int(np.bincount(order % shards).max())
    per_shard = programs.chunk_rows(self._num_rows, wanted)
    tokens = np.zeros((shards, per_shard, _CHUNK), np.int32)
    rows = np.full((shards, per_shard), self._num_rows, np.int32)  # The spare.
    begins = np.zeros((shards, per_shard), np.int32)
    for shard in range(shards):
      for place, trunk in enumerate(order[order % shards == shard][:per_shard]):
        begin = self._read[trunk] * _CHUNK
        part = self._trunks[trunk][begin : begin + _CHUNK]
        tokens[shard, place, : len(part)] = part
        rows[shard, place], begins[shard, place] = trunk // shards, begin
        self._read[trunk] += 1
        self._scorer.num_tokens += len(part)
    program = programs.trunks(self._num_rows, self._size, per_shard)
    self._cache = program(
        programs.params, self._cache, *map(self._put, (tokens, rows, begins))
    )

  def _forks(self, probes: Sequence[Probe]) -> np.ndarray:
    """Scores forks of trunks that are read far enough."""
    by_trunk: dict[int, list[int]] = {}
    for i, probe in enumerate(probes):
      by_trunk.setdefault(probe.trunk, []).append(i)
    units: dict[tuple[int, int], list[list[int]]] = {}
    for indices in by_trunk.values():
      # Neighbours see about as much of the trunk.
      indices.sort(key=lambda i: probes[i].anchor)
      by_width: dict[int, list[int]] = {}
      for i in indices:
        by_width.setdefault(
            programs_lib.fork_width(len(probes[i].tokens)), []
        ).append(i)
      for width, group in by_width.items():
        num_forks = self._programs.num_forks(len(indices), width)
        units.setdefault((num_forks, width), []).extend(
            group[i : i + num_forks] for i in range(0, len(group), num_forks)
        )
    results = []
    for (num_forks, width), group in units.items():
      group.sort(key=lambda unit: probes[unit[-1]].anchor)
      results += self._fork_calls(probes, group, num_forks, width)
    margins = np.zeros(len(probes), np.float32)
    for places, out in results:  # Only now wait for the devices.
      values = np.asarray(out).reshape(-1)
      for place, i in places:
        margins[i] = values[place]
    self._scorer.num_tokens += sum(len(probe.tokens) for probe in probes)
    return margins

  def _fork_calls(self, probes, units, num_forks: int, width: int):
    """Starts the calls; returns where each probe's score will be."""
    programs, shards = self._programs, self._programs.num_shards
    waiting = [
        [unit for unit in units if probes[unit[0]].trunk % shards == shard]
        for shard in range(shards)
    ]
    wanted = max(map(len, waiting))
    per_shard = programs.fork_rows(num_forks, width, wanted)
    program = programs.forks(
        self._num_rows, self._size, num_forks, width, per_shard
    )
    results = []
    for begin in range(0, wanted, per_shard):
      call = [queue[begin : begin + per_shard] for queue in waiting]
      places, arrays = self._arrays(probes, call, per_shard, num_forks, width)
      args = map(self._put, arrays)
      results.append((places, program(programs.params, self._cache, *args)))
    return results

  def _arrays(self, probes, call, per_shard: int, num_forks: int, width: int):
    """Returns [(place in the result, probe)], and the arguments of a call."""
    S, B, M = len(call), per_shard, num_forks
    tokens = np.zeros((S, B, M, width), np.int32)
    lengths, seen = np.ones((S, B, M), np.int32), np.zeros((S, B, M), np.int32)
    rows = np.full((S, B), self._num_rows, np.int32)
    pairs = np.zeros((S, B, M, 2), np.int32)
    places = []
    for s, units in enumerate(call):
      for b, unit in enumerate(units):
        rows[s, b] = probes[unit[0]].trunk // S
        for m, i in enumerate(unit):
          probe = probes[i]
          num = len(probe.tokens)
          tokens[s, b, m, :num], lengths[s, b, m] = probe.tokens, num
          seen[s, b, m], pairs[s, b, m] = probe.anchor, (probe.yes, probe.no)
          places.append(((s * B + b) * M + m, i))
    return places, (tokens, lengths, rows, seen, pairs)

  def _put(self, x: np.ndarray) -> jax.Array:
    """Returns [shards, rows, ...] on the mesh as [shards * rows, ...]."""
    x = x.reshape(-1, *x.shape[2:])
    where = mesh_lib.rows(self._programs.mesh)
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])
