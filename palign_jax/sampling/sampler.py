"""Samples many completions at once, each as if it were alone.

A fixed number of rows is decoded together, several tokens per call.  A row that
ends makes room for the next request at once; requests with the same prompt
share its reading; long prompts are read in chunks between calls.  When nobody
waits any more, fewer rows are decoded as they end.

What a request draws depends on its prompt and its key: not on its place, its
neighbours, or when it was read; nor, on one CPU, on how many rows are decoded
together, if they are at least 8 and a multiple of 8 (more for models narrower
than 512: `buckets.num_rows`).  Elsewhere another number is another rounding.
"""

from collections.abc import Iterable, Iterator, Sequence
import contextlib
import functools

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
import numpy as np

from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import memory, mesh as mesh_lib
from palign_jax.sampling import (
    attend,
    buckets,
    logits,
    loops,
    rows as rows_lib,
    slots as slots_lib,
    steps,
    weights,
)
from palign_jax.text import tokenizer as tokenizer_lib

SamplingConfig = logits.SamplingConfig
Request = rows_lib.Request
Completion = rows_lib.Completion

# Rows wait for each other's ends, so that they are replaced a few at a time.
_LEAVE = 32  # One in so many ends a call while others wait.
# Prompt tokens read between two calls, at most, while at least half of the rows
# are decoded, and while fewer are.
_READ = 1024, 4096
_AHEAD = 256  # Tokens of an answer that the cache has room for at first.
_MARKED = 8  # Rows of `seen` that are set at once.


class Sampler:
  """Samples any number of requests from one model.

  Attributes:
    num_steps: Decoding steps taken so far.
    row_steps: Rows in them, idle ones included.
    tokens: Tokens drawn that were asked for, stop tokens included.
    programs: What was compiled for: name and sizes.
  """

  def __init__(
      self,
      params: decoder.Params,
      model_config: config_lib.ModelConfig,
      *,
      mesh: Mesh | None,
      dtype: DTypeLike,
      num_rows: int,
      stop_ids: Sequence[int],
      vocab_limit: int,
      max_positions: int,
      sampling: SamplingConfig,
      loop_rule: loops.LoopRule | None,
      prefill_tokens: int,
      lora_scale: float = 0.0,
      stop_strings: Sequence[str] = (),
      tokenizer: tokenizer_lib.Tokenizer | None = None,
      attention: str = 'auto',
  ):
    """Nothing is compiled yet.

    Args:
      params: Weights, with adapters if `lora.join` put them there.  If their
        layers are unstacked they are not copied, but on a CPU, where their
        kernels are turned.
      model_config: The model.
      mesh: Rows are split over its data and fsdp axes, heads over tensor; None
        for one device.
      dtype: Of the computation and of the cache.
      num_rows: Rows decoded together, at most.
      stop_ids: A completion ends before any of them.
      vocab_limit: Ids from here on are padding, never drawn.
      max_positions: Tokens of prompt and completion together, at most.
      sampling: How to draw.
      loop_rule: When a completion counts as looping; None for never.
      prefill_tokens: Prompt tokens read at once, at most, padding included;
        64 per group of devices always are.
      lora_scale: alpha / rank of the adapters.
      stop_strings: A completion's text ends before any of them.
      tokenizer: Stop strings and `stream` need it.
      attention: Who computes it, one of `kernels.NAMES`.

    Raises:
      ConfigError: If rows or heads do not split over the mesh, or a stop
        string cannot be one.
    """
    self._shards = mesh_lib.num_row_shards(mesh) if mesh else 1
    if num_rows < 1 or num_rows % self._shards:
      raise errors.ConfigError(
          f'{num_rows} rows per batch do not split over {self._shards} groups'
          ' of devices (mesh.data * mesh.fsdp); take a multiple.'
      )
    ways = mesh.shape['tensor'] if mesh else 1
    if model_config.num_kv_heads % ways:
      raise errors.ConfigError(
          f'config.mesh.tensor is {ways} and the model has'
          f' {model_config.num_kv_heads} KV heads, which do not split so; take'
          ' a divisor, and more of config.mesh.fsdp or data.'
      )
    self._mesh = mesh or mesh_lib.alone()
    self._backend = kernels.Backend(attention, self._mesh)
    self._params = weights.pack(params, self._backend.platform)
    self._config = model_config
    self._sizes = buckets.num_rows(num_rows, self._shards, _least(model_config))
    if num_rows * _products(model_config) < buckets.SMALL:
      self._sizes = [num_rows]
    self._ends = rows_lib.Ends(
        frozenset(stop_ids), loop_rule, tuple(stop_strings), tokenizer
    )
    self._stop_ids = np.array(sorted(self._ends.stop_ids), np.int32)
    self._max_positions = max_positions
    self._chunk = prefill_tokens // self._shards
    self._penal = sampling.repetition_penalty != 1
    static = dict(config=model_config, dtype=jnp.dtype(dtype))
    self._new_cache = functools.partial(
        steps.new_cache, mesh=self._mesh, **static
    )
    static |= dict(backend=self._backend, lora_scale=lora_scale)
    self._read = functools.partial(steps.read, **static)
    self._decode = functools.partial(
        steps.decode, sampling=sampling, vocab_limit=vocab_limit, **static
    )
    self.num_steps = self.row_steps = self.tokens = 0
    self.programs: set[tuple[str | int, ...]] = set()

  def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
    """Yields one completion per request, in the order they finish.

    Raises:
      ConfigError: If a request is empty or too long (nothing is sampled then),
        or there is no memory left.
      DataError: If logits are not finite.
    """
    requests = list(requests)
    for request in requests:
      self._check(request)
    if not requests:
      return
    known = len(self.programs)
    for row in self._travel(requests, steps.STEPS):
      if row.finish_reason:
        yield row.completion()
    if len(self.programs) > known:
      logging.info(
          'Sampling: %d programs compiled or loaded, %.0f%% of the row-steps'
          ' useful.',
          len(self.programs),
          100 * self.useful,
      )

  def stream(self, request: Request) -> Iterator[str]:
    """Yields the text that `run` would return, piece by piece.

    The sampler must have a tokenizer.
    """
    self._check(request)
    num_shown = 0
    for row in self._travel([request], 4):
      text = row.text()
      yield text[num_shown:]
      num_shown = len(text)

  def _settle(self, cache, seen):
    """Returns them on their device just as programs will return them.

    Any other way to say where they are is another type: every program would be
    compiled once more for it.
    """
    if self._mesh.size > 1 or not jax.tree.leaves(cache):
      return cache, seen
    where = jax.tree.leaves(self._params)[0].sharding
    if isinstance(where, NamedSharding):
      where = mesh_lib.replicated(where.mesh)
    return jax.device_put((cache, seen), where)

  @property
  def useful(self) -> float:
    """Which share of the row-steps gave a token that was asked for."""
    return self.tokens / max(self.row_steps, 1)

  def _check(self, request: Request) -> None:
    length, limit = len(request.tokens), self._max_positions
    if not length or request.max_tokens < 1:
      raise errors.ConfigError(
          f'request {request.id}: a prompt of {length} tokens and max_tokens'
          f' {request.max_tokens}; both must be at least 1.'
      )
    if length + request.max_tokens > limit:
      raise errors.ConfigError(
          f'request {request.id}: a prompt of {length} tokens and max_tokens'
          f' {request.max_tokens} exceed the {limit} positions of the model;'
          ' lower max_tokens or leave out the request.'
      )

  def _travel(
      self, requests: Sequence[Request], num_steps: int
  ) -> Iterator[rows_lib.Row]:
    """Yields a row whenever it has drawn, up to `num_steps` at a time."""
    with self._in_memory():
      journey = _Journey(self, requests)
      while journey.slots.queued or journey.slots.num_live:
        journey.fill()
        yield from journey.decode(num_steps)

  @contextlib.contextmanager
  def _in_memory(self) -> Iterator[None]:
    """Turns XLA's complaint about memory into one line."""
    try:
      yield
    except jax.errors.JaxRuntimeError as e:
      if not memory.is_exhausted(e):
        raise
      raise errors.ConfigError(
          f'config.compute.num_rows: no memory to sample {self._sizes[0]} rows'
          f' together ({str(e).splitlines()[0]}); lower it,'
          ' config.compute.prefill_tokens or max_tokens of what is drawn, or'
          ' split the model over more devices with config.mesh.tensor.'
      ) from e


class _Journey:
  """One run of a sampler: its slots, and what they hold on the devices."""

  def __init__(self, sampler: Sampler, requests: Sequence[Request]):
    self._s = s = sampler
    rows = [rows_lib.Row(request, s._ends) for request in requests]
    fits = [size for size in s._sizes if size >= len(rows)]
    size = min(fits or s._sizes[:1])
    group = attend.group(size // s._shards, s._backend.platform)
    self.slots = slots_lib.Slots(rows, size, s._shards, group)
    # Groups of devices with nothing to read write into slots past all others.
    self._spare = buckets.CHUNKS[-1] if s._shards > 1 else 0
    self._longest = max(self._need(r, r.max_tokens) for r in requests)
    first = max(self._need(r, min(r.max_tokens, _AHEAD)) for r in requests)
    self._capacity = self._bucket(first)
    self._size = size  # Of the cache.
    cache = s._new_cache(num_rows=size, capacity=self._capacity)
    seen = None
    if s._penal:
      shape = size, s._config.vocab_size
      seen = steps.new_seen(shape=shape, mesh=s._mesh)
    self._cache, self._seen = s._settle(cache, seen)
    self._new_rows: list[int] = []

  def _need(self, request: Request, num_new: int) -> int:
    """Returns how many slots a row takes until it has so many new tokens."""
    length = len(request.tokens)
    read = buckets.chunks_end(length - 1, self._s._chunk)
    return max(read, length + num_new + steps.STEPS) + 1

  def _bucket(self, length: int) -> int:
    return buckets.capacity(length + self._spare)

  def _put(self, x: np.ndarray) -> jax.Array:
    if self._s._mesh.size == 1:
      return jnp.asarray(x)
    return jax.device_put(x, mesh_lib.rows(self._s._mesh))

  def fill(self) -> None:
    """Fills free slots as far as decoding rows can wait for it."""
    slots, num_read = self.slots, 0
    while True:
      self._admit()
      live = slots.num_live
      limit = _READ[2 * live < slots.size]
      if not any(slots.reading) or live and num_read >= limit:
        break
      num_read += self._read_chunk()
    self._mark()

  def _admit(self) -> None:
    """Gives slots to rows whose prompts are there, copying them."""
    slots, each = self.slots, self.slots.per_shard
    while True:
      placed = [slots.admit(shard) for shard in range(slots.num_shards)]
      self._new_rows += [at[0] for at in placed if at]
      if any(at and at[1] is not None for at in placed):
        # Who has nothing to copy copies a row onto itself.
        both = [
            (at[0], at[1]) if at and at[1] is not None else (0, 0)
            for at in placed
        ]
        to, of = np.array(both, np.int32).T % np.int32(each)
        self._note('copy')
        self._cache = steps.copy(
            self._cache, self._put(of), self._put(to), mesh=self._s._mesh
        )
      if not any(placed):
        return

  def _read_chunk(self) -> int:
    """Reads a chunk of one prompt per shard; returns its length."""
    s, slots = self._s, self.slots
    size = lambda r: buckets.chunk(r.left, s._chunk)
    C = next(size(r) for r in slots.reading if r)
    now = [r if r and size(r) == C else None for r in slots.reading]
    self._reach(max(r.num_read for r in now if r) + C + 1)
    tokens = np.zeros((len(now), C), np.int32)
    rows, begins, seen = np.zeros((3, len(now)), np.int32)
    begins += self._capacity - C
    for i, r in enumerate(now):
      if r:
        new = r.row.request.tokens[r.num_read : min(r.num_read + C, r.length)]
        tokens[i, : len(new)] = new
        rows[i] = r.slot % slots.per_shard
        begins[i] = seen[i] = r.num_read
    self._note('read', C)
    self._cache = s._read(
        s._params, self._cache, *map(self._put, (tokens, rows, begins, seen))
    )
    for shard, r in enumerate(now):
      if r and (slot := slots.has_read(shard, C)) is not None:
        self._new_rows.append(slot)
    return C

  def _mark(self) -> None:
    """Sets what new rows have seen: their prompts."""
    new, self._new_rows = self._new_rows, []
    if self._seen is None:
      return
    for begin in range(0, len(new), _MARKED):
      some = new[begin : begin + _MARKED]
      rows = np.full(_MARKED, self.slots.size, np.int32)
      rows[: len(some)] = some
      marks = np.zeros((_MARKED, self._s._config.vocab_size), bool)
      for mark, slot in zip(marks, some, strict=False):
        mark[list(self.slots.rows[slot].request.tokens)] = True
      self._note('admit')
      self._seen = steps.admit(self._seen, rows, marks, mesh=self._s._mesh)

  def _note(self, name: str, *sizes: int) -> None:
    self._s.programs.add((name, self._size, self._capacity, *sizes))

  def _reach(self, length: int) -> None:
    """Grows the cache, if need be, to hold so many tokens per row."""
    if length + self._spare <= self._capacity:
      return
    twice = min(2 * self._capacity, self._longest)
    all_rows = [*range(self.slots.per_shard)] * self.slots.num_shards
    self._move(all_rows, self._bucket(max(length, twice)))

  def _move(self, rows: list[int], capacity: int) -> None:
    """Takes some rows, numbered as their shards do, to a new cache."""
    before = self._size, self._capacity
    self._size, self._capacity = len(rows), capacity
    self._note('move', *before)
    self._cache, self._seen = steps.move(
        self._cache,
        self._seen,
        self._put(np.array(rows, np.int32)),
        capacity=capacity,
        mesh=self._s._mesh,
    )

  def _shrink(self) -> int:
    """Drops idle rows if none waits; returns how many ends are worth a call."""
    slots, s = self.slots, self._s
    if slots.queued:
      return max(1, slots.size // _LEAVE)
    need = slots.most_live() * slots.num_shards
    size = min(size for size in s._sizes if size >= need)
    if size < slots.size:
      self._move(slots.shrink(size), self._capacity)
    smaller = max((x for x in s._sizes if x < slots.size), default=0)
    return max(1, slots.num_live - smaller)

  def decode(self, num_steps: int) -> Iterator[rows_lib.Row]:
    """Decodes up to `num_steps` tokens per row, and yields the rows."""
    s, slots = self._s, self.slots
    leave = self._shrink()
    live = slots.live()
    place = lambda row: len(row.request.tokens) + len(row.tokens) - 1
    self._reach(max(place(row) for _, row in live) + steps.STEPS + 1)
    B = slots.size
    tokens, places, drawn, budgets = np.zeros((4, B), np.int32)
    keys = np.zeros((B, 2), np.uint32)
    for i, row in live:
      tokens[i] = (row.tokens or row.request.tokens)[-1]
      places[i], drawn[i] = place(row), len(row.tokens)
      budgets[i] = min(row.left, num_steps)
      keys[i] = row.request.key
    self._note('decode')
    self._cache, self._seen, out, num = s._decode(
        s._params,
        self._cache,
        self._seen,
        *map(self._put, (tokens, places, drawn, budgets, keys)),
        s._stop_ids,
        np.int32(leave),
    )
    num, out = int(num), np.asarray(out)
    s.num_steps += num
    s.row_steps += num * B
    for i, row in live:
      s.tokens += row.take(out[i, :num])
      if row.finish_reason:
        slots.leave(i)
      yield row


def _products(c: config_lib.ModelConfig) -> int:
  """Returns how many products a token takes, attention aside."""
  heads = 2 * c.num_heads + 2 * c.num_kv_heads
  layer = c.embed_dim * (heads * c.head_dim + 3 * c.mlp_dim)
  return c.num_layers * layer + c.embed_dim * c.vocab_size


def _least(c: config_lib.ModelConfig) -> int:
  """Returns the fewest numbers of a token that are normalised at once."""
  heads = c.num_kv_heads * c.head_dim
  return min(c.embed_dim, c.vocab_size, heads if c.qk_norm else c.embed_dim)
