"""The jitted half of the sampler.

Rows share a batch and nothing else.  The shapes a row meets follow from its
bucket and its slot (`buckets.py`), so its bits do not depend on the rest.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Int, UInt32

from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import logits as logits_lib

# What a row keeps on the device: its keys and values, and which tokens it has
# seen, bool [B V] (None where the penalty is 1).
Memory = tuple[decoder.Cache, Array | None]

Shardings = tuple[NamedSharding, NamedSharding]  # Of the two parts of Memory.

STEPS = 32  # Tokens per call of `decode`, at most.
_STATIC = ('config', 'sampling', 'vocab_limit', 'dtype', 'lora_scale')


def unstack(params: decoder.Params) -> decoder.Params:
  """Returns weights by layer, each where its stack was."""
  if isinstance(params['layers'], tuple):
    return params

  def place(x):
    if not isinstance(x.sharding, NamedSharding):
      return None
    spec = PartitionSpec(*x.sharding.spec[1:])
    return NamedSharding(x.sharding.mesh, spec)

  layers = params['layers']
  num = len(jax.tree.leaves(layers)[0])
  where = (jax.tree.map(place, layers),) * num
  split = lambda stack: decoder.unstack({'layers': stack})['layers']
  return {**params, 'layers': jax.jit(split, out_shardings=where)(layers)}


def memory_shardings(mesh: Mesh, num_kv_heads: int) -> Shardings:
  """Returns where memory lives: rows split, and heads if they split evenly."""
  heads = None if num_kv_heads % mesh.shape['tensor'] else 'tensor'
  cache = PartitionSpec(*mesh_lib.ROWS, heads)
  return NamedSharding(mesh, cache), mesh_lib.rows(mesh)


def _mark(seen, tokens: Int[Array, ' B']):
  if seen is None:
    return None
  ids = jnp.arange(seen.shape[1], dtype=jnp.int32)[None]
  return seen | (ids == tokens[:, None])


@functools.partial(jax.jit, static_argnames=_STATIC)
def prefill(
    params: decoder.Params,
    tokens: Int[Array, 'B T'],
    lengths: Int[Array, ' B'],
    keys: UInt32[Array, 'B 2'],
    *,
    config: config_lib.ModelConfig,
    sampling: logits_lib.SamplingConfig,
    vocab_limit: int,
    dtype: DTypeLike,
    lora_scale: float,
) -> tuple[Memory, Int[Array, ' B']]:
  """Returns the memory of new rows, T slots long, and their first tokens."""
  B, T = tokens.shape
  x, cache = decoder.prefill(
      params,
      config,
      tokens,
      lengths,
      capacity=T,
      dtype=dtype,
      lora_scale=lora_scale,
  )
  seen = None
  if sampling.repetition_penalty != 1:
    real = jnp.arange(T, dtype=jnp.int32)[None] < lengths[:, None]
    seen = jnp.zeros((B, config.vocab_size), bool)
    seen = seen.at[jnp.arange(B)[:, None], tokens].max(real)
  logits = decoder.logits(params, config, x)
  first = jnp.zeros(B, jnp.int32)
  new = logits_lib.draw(logits, seen, keys, first, sampling, vocab_limit)
  return (cache, _mark(seen, new)), new


@functools.partial(
    jax.jit, static_argnames=_STATIC, donate_argnames=('memory',)
)
def decode(
    params: decoder.Params,
    memory: Memory,
    tokens: Int[Array, ' B'],
    lengths: Int[Array, ' B'],
    starts: Int[Array, ' B'],
    keys: UInt32[Array, 'B 2'],
    budgets: Int[Array, ' B'],
    slot: Int[Array, ''],
    stop_ids: Int[Array, ' i'],
    *,
    config: config_lib.ModelConfig,
    sampling: logits_lib.SamplingConfig,
    vocab_limit: int,
    dtype: DTypeLike,
    lora_scale: float,
) -> tuple[Memory, Int[Array, 'B t']]:
  """Draws up to `STEPS` tokens per row.

  Args:
    params: Weights, unstacked.
    memory: Donated: do not use it again.
    tokens: The last token of each row, not yet in the cache.
    lengths: Of each prompt; it lies in the slots from 0.
    starts: The slot of each row's first drawn token.
    keys: Of each row.
    budgets: How many tokens each row may draw; 0 for a row that is done.
    slot: Where `tokens` go, the same for all rows.
    stop_ids: A row that draws one of them is done.
    config: The model.
    sampling: How to draw.
    vocab_limit: Ids from here on are never drawn.
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.

  Returns:
    The memory, and the t = STEPS tokens of each row; what follows its budget
    or its stop token is rubbish.
  """
  cache, _ = memory
  slots = jnp.arange(cache[0][1].shape[2], dtype=jnp.int32)[None]
  prompt = slots < lengths[:, None]

  def busy(state):
    return jnp.any(state[0] < state[1])

  def step(state):
    i, budgets, tokens, (cache, seen), out = state
    now = slot + i
    valid = prompt | (slots >= starts[:, None]) & (slots <= now)
    drawn = now - starts + 1
    x, cache = decoder.decode(
        params,
        config,
        tokens,
        lengths + drawn - 1,
        now,
        valid,
        cache,
        dtype=dtype,
        lora_scale=lora_scale,
    )
    logits = decoder.logits(params, config, x)
    new = logits_lib.draw(logits, seen, keys, drawn, sampling, vocab_limit)
    out = jax.lax.dynamic_update_slice_in_dim(out, new[:, None], i, 1)
    stopped = jnp.any(new[:, None] == stop_ids[None], axis=1)
    budgets = jnp.where(stopped, 0, budgets)
    return i + 1, budgets, new, (cache, _mark(seen, new)), out

  out = jnp.zeros((len(tokens), STEPS), jnp.int32)
  state = (jnp.int32(0), budgets, tokens, memory, out)
  _, _, _, memory, out = jax.lax.while_loop(busy, step, state)
  return memory, out


@functools.partial(jax.jit, static_argnames=('capacity', 'shardings'))
def gather(
    one: Memory,
    two: Memory | None,
    rows: Int[Array, ' b'],
    *,
    capacity: int,
    shardings: Shardings | None,
) -> Memory:
  """Returns a batch made of rows of one or two others.

  Args:
    one: Memory.
    two: Memory, if there is another.
    rows: For each of the result's b rows, which row of `one` it is; those of
      `two` are counted on from there.
    capacity: Slots of the result, at least as many as there are.
    shardings: Where the result lives; None for one device.
  """

  def grow(memory):
    cache, seen = memory
    new = capacity - cache[0][1].shape[2]
    pad = lambda x, axis: jnp.pad(
        x, [(0, new if i == axis else 0) for i in range(4)]
    )
    return tuple((pad(k, 3), pad(v, 2)) for k, v in cache), seen

  memories = [grow(memory) for memory in (one, two) if memory is not None]
  picked = jax.tree.map(lambda *x: jnp.concatenate(x)[rows], *memories)
  if shardings is None:
    return picked
  return tuple(
      jax.tree.map(
          lambda x, to=to: jax.lax.with_sharding_constraint(x, to), part
      )
      for part, to in zip(picked, shardings, strict=True)
  )
