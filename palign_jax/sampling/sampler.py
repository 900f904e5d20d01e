"""Samples many completions at once, each as if it were alone.

Requests wait by the bucket of their prompt, are prefilled, and then travel
through the slots of the cache in batches of a fixed number of rows.  At every
length of `buckets.py`, and when many of its rows are done, a batch is parked,
and rows that parked at the same slot travel on together, whatever their prompts
were.  So batches are nearly full as long as there are rows to fill them.

What a request draws depends on its prompt, its key and the number of rows per
batch: never on its place, its neighbours or when it was read.
"""

from collections.abc import Iterable, Iterator, Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
import numpy as np

from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import (
    buckets,
    logits,
    loops,
    parking,
    rows as rows_lib,
    steps,
)

SamplingConfig = logits.SamplingConfig
Request = rows_lib.Request
Completion = rows_lib.Completion


class Sampler:
  """Samples any number of requests from one model."""

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
  ):
    """Takes the weights as they lie; nothing is compiled yet.

    Args:
      params: Weights, with adapters if `lora.join` put them there.
      model_config: The model.
      mesh: Rows are split over its data and fsdp axes; None for one device.
      dtype: Of the computation and of the cache.
      num_rows: Rows per batch.  Another number is another rounding.
      stop_ids: A completion ends before any of them.
      vocab_limit: Ids from here on are padding, never drawn.
      max_positions: Tokens of prompt and completion together, at most.
      sampling: How to draw.
      loop_rule: When a completion counts as looping; None for never.
      prefill_tokens: Prompt tokens read at once, at most, padding included;
        one row is always read.  Bounds the memory of long prompts.
      lora_scale: alpha / rank of the adapters.

    Raises:
      ConfigError: If the rows do not split over the mesh.
    """
    self._shards = mesh_lib.num_row_shards(mesh) if mesh else 1
    if num_rows < 1 or num_rows % self._shards:
      raise errors.ConfigError(
          f'{num_rows} rows per batch do not split over {self._shards} groups'
          ' of devices (mesh.data * mesh.fsdp); take a multiple.'
      )
    self._params = steps.unstack(params)
    self._mesh = mesh
    self._num_rows = num_rows
    self._stop_ids = frozenset(stop_ids)
    self._max_positions = max_positions
    self._loop_rule = loop_rule
    self._prefill_tokens = prefill_tokens
    static = dict(
        config=model_config,
        sampling=sampling,
        vocab_limit=vocab_limit,
        dtype=jnp.dtype(dtype),
        lora_scale=lora_scale,
    )
    self._shardings = mesh and steps.memory_shardings(
        mesh, model_config.num_kv_heads
    )
    self._prefill = functools.partial(steps.prefill, **static)
    self._decode = functools.partial(steps.decode, **static)

  def run(self, requests: Iterable[Request]) -> Iterator[Completion]:
    """Yields one completion per request, in the order they finish.

    Raises:
      ConfigError: If a request is empty or too long; nothing is sampled then.
    """
    requests = list(requests)
    for request in requests:
      self._check(request)
    for row in self._travel(requests, steps.STEPS):
      if row.finish_reason:
        yield row.completion()

  def stream(self, request: Request) -> Iterator[int]:
    """Yields the tokens that `run` would return, a few at a time."""
    self._check(request)
    num_shown = 0
    for row in self._travel([request], 4):
      yield from row.tokens[num_shown:]
      num_shown = len(row.tokens)

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
      self, requests: Iterable[Request], num_steps: int
  ) -> Iterator[rows_lib.Row]:
    """Yields a row whenever it has drawn, up to `num_steps` at a time."""
    waiting: dict[int, list[rows_lib.Row]] = {}  # By bucket.
    longest = 0
    for request in requests:
      row = rows_lib.Row(request, self._stop_ids, self._loop_rule)
      waiting.setdefault(row.start, []).append(row)
      longest = max(longest, buckets.fitting(row.start + row.left))
    for rows in waiting.values():
      rows.reverse()
    parked = parking.Parking(self._num_rows, longest, self._shardings)
    while waiting or parked:
      slot, reads = self._choose(waiting, parked)
      if reads:
        rows = waiting[slot]
        group = [rows.pop() for _ in range(min(len(rows), self._width(slot)))]
        if not rows:
          del waiting[slot]
        batch = yield from self._read(group, slot)
      else:
        batch = parked.take(slot)
        others = bool(waiting or parked)
        batch, slot = yield from self._leg(batch, slot, num_steps, others)
      parked.put(slot, batch)

  def _choose(self, waiting, parked: parking.Parking) -> tuple[int, bool]:
    """Returns where to go on, and whether prompts are to be read there.

    Full batches go before all others.  When none can be filled, the hindmost
    moves up to the next.
    """
    if (slot := parked.urgent()) is not None:
      return slot, False
    wide = [s for s in waiting if len(waiting[s]) >= self._width(s)]
    slot = min(wide or [*waiting, *parked.slots()])
    return slot, slot in waiting

  def _width(self, bucket: int) -> int:
    """Returns how many prompts of a bucket are read at once."""
    fit = self._prefill_tokens // bucket // self._shards * self._shards
    return min(max(fit, self._shards), self._num_rows)

  def _put(self, x: np.ndarray) -> jax.Array:
    if self._mesh is None:
      return jnp.asarray(x)
    return jax.device_put(x, mesh_lib.rows(self._mesh))

  def _read(self, rows: list[rows_lib.Row], bucket: int):
    """Prefills prompts; yields the rows; returns those that are not done."""
    num = self._width(bucket)
    tokens = np.zeros((num, bucket), np.int32)
    lengths, keys = np.ones(num, np.int32), np.zeros((num, 2), np.uint32)
    for i, row in enumerate(rows):
      prompt = row.request.tokens
      tokens[i, : len(prompt)] = prompt
      lengths[i], keys[i] = len(prompt), row.request.key
    memory, new = self._prefill(
        self._params, *map(self._put, (tokens, lengths, keys))
    )
    for row, token in zip(rows, np.asarray(new), strict=False):
      row.take(token[None])
      yield row
    return parking.Batch(rows, memory)

  def _leg(self, batch: parking.Batch, slot: int, num_steps: int, others: bool):
    """Decodes up to the next length at most, yielding rows.

    Args:
      batch: Where to begin; its memory is used up.
      slot: Where its next tokens go.
      num_steps: How many tokens to draw at a time.
      others: Whether it may stop early for company, when many rows are done.

    Returns:
      The batch and its slot.
    """
    begin, end = slot, buckets.above(slot)
    rows, B = batch.rows, self._num_rows
    memory = batch.memory
    keys = np.zeros((B, 2), np.uint32)
    lengths, starts = np.ones(B, np.int32), np.full(B, slot, np.int32)
    for i, row in enumerate(rows):
      keys[i], starts[i] = row.request.key, row.start
      lengths[i] = len(row.request.tokens)
    fixed = [self._put(x) for x in (lengths, starts, keys)]
    stop_ids = np.array(sorted(self._stop_ids), np.int32)
    while slot < end and (num_left := sum(row.left > 0 for row in rows)):
      sparse = others and num_left <= parking.SPARSE * B
      if sparse and slot > begin and slot % buckets.STEP == 0:
        break
      tokens, budgets = np.zeros((2, B), np.int32)
      for i, row in enumerate(rows):
        tokens[i], budgets[i] = row.tokens[-1] if row.left else 0, row.left
      budgets = np.minimum(budgets, min(num_steps, end - slot))
      memory, out = self._decode(
          self._params,
          memory,
          self._put(tokens),
          *fixed,
          self._put(budgets),
          np.int32(slot),
          stop_ids,
      )
      for row, new in zip(rows, np.asarray(out), strict=False):
        if row.left:
          row.take(new[: min(num_steps, end - slot)])
          yield row
      slot += num_steps
    return parking.Batch(rows, memory), slot
