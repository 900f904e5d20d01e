"""The jitted half of the sampler.

A row's bits follow from its own tokens alone: not from its place, its
neighbours, the capacity of the cache or when it was admitted.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Int, UInt32

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import attend, logits as logits_lib, weights

STEPS = 16  # Tokens per row and call of `decode`, at most.

# Which tokens each row has seen, bool [B V]; None where the penalty is 1.
Seen = Array | None


@functools.partial(
    jax.jit, static_argnames=('config', 'num_rows', 'capacity', 'dtype', 'mesh')
)
def new_cache(
    *,
    config: config_lib.ModelConfig,
    num_rows: int,
    capacity: int,
    dtype: DTypeLike,
    mesh: Mesh,
) -> decoder.Cache:
  """Returns an empty cache, each row on its device."""
  cache = decoder.new_cache(config, num_rows, capacity, dtype)
  return _placed(cache, mesh)


@functools.partial(jax.jit, static_argnames=('shape', 'mesh'))
def new_seen(*, shape: tuple[int, int], mesh: Mesh) -> Seen:
  """Returns that no row has seen any token."""
  return _by_rows(jnp.zeros(shape, bool), mesh)


def _placed(cache: decoder.Cache, mesh: Mesh) -> decoder.Cache:
  if mesh.size == 1:
    return cache
  where = NamedSharding(mesh, decoder.CACHE)
  return jax.tree.map(
      lambda x: jax.lax.with_sharding_constraint(x, where), cache
  )


@functools.partial(
    jax.jit,
    static_argnames=('config', 'backend', 'dtype', 'lora_scale'),
    donate_argnames=('cache',),
)
def read(
    params: decoder.Params,
    cache: decoder.Cache,
    tokens: Int[Array, 'D C'],
    rows: Int[Array, ' D'],
    begins: Int[Array, ' D'],
    seen: Int[Array, ' D'],
    *,
    config: config_lib.ModelConfig,
    backend: kernels.Backend,
    dtype: DTypeLike,
    lora_scale: float,
) -> decoder.Cache:
  """Reads the next C tokens of one prompt on each group of devices.

  Args:
    params: Weights, packed.
    cache: Donated: do not use it again.
    tokens: Of the prompts.
    rows: Which rows of the devices' own they are.
    begins: Where in its row each begins.
    seen: How many tokens it has there already; 0 where there is nothing to
      read, which then goes where `begins` says, for nobody.
    config: The model.
    backend: Who computes attention, and on which devices.
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.
  """
  return decoder.grow(
      weights.unpack(params, config, backend.platform),
      config,
      tokens,
      rows,
      begins,
      cache,
      backend=backend,
      dtype=dtype,
      lora_scale=lora_scale,
      seen=seen,
  )


@functools.partial(
    jax.jit, static_argnames=('mesh',), donate_argnames=('cache',)
)
def copy(
    cache: decoder.Cache,
    sources: Int[Array, ' D'],
    targets: Int[Array, ' D'],
    *,
    mesh: Mesh,
) -> decoder.Cache:
  """Copies one row on each group of devices, numbered as its own."""

  def local(cache, sources, targets):
    def one(x):
      row = jax.lax.dynamic_slice_in_dim(x, sources[0], 1, 0)
      return jax.lax.dynamic_update_slice_in_dim(x, row, targets[0], 0)

    return jax.tree.map(one, cache)

  if mesh.size == 1:
    return local(cache, sources, targets)
  rows, heads = mesh_lib.ROWS, decoder.CACHE
  return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(heads, rows, rows),
      out_specs=heads,
      check_vma=False,
  )(cache, sources, targets)


@functools.partial(jax.jit, static_argnames=('capacity', 'mesh'))
def move(
    cache: decoder.Cache,
    seen: Bool[Array, 'B V'] | None,
    rows: Int[Array, ' b'],
    *,
    capacity: int,
    mesh: Mesh,
) -> tuple[decoder.Cache, Seen]:
  """Returns a cache of other capacity, or with some of the rows.

  Args:
    cache: Rows.
    seen: Theirs.
    rows: Which, in their new order; on a mesh, of the device's own.
    capacity: Slots of the result, at least as many as there are.
    mesh: The devices.
  """

  def local(cache, rows):
    def one(x, axis):
      widths = [(0, 0)] * 4
      widths[axis] = 0, capacity - x.shape[axis]
      return jnp.pad(x[rows], widths)

    return tuple((one(k, 3), one(v, 2)) for k, v in cache)

  pick = lambda seen, rows: seen[rows]
  if mesh.size > 1:
    own, heads = mesh_lib.ROWS, decoder.CACHE
    here = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)
    local = here(local, in_specs=(heads, own), out_specs=heads)
    pick = here(pick, in_specs=(own, own), out_specs=own)
  return local(cache, rows), None if seen is None else pick(seen, rows)


@functools.partial(
    jax.jit,
    static_argnames=(
        'config',
        'backend',
        'sampling',
        'vocab_limit',
        'dtype',
        'lora_scale',
    ),
    donate_argnames=('cache', 'seen'),
)
def decode(
    params: decoder.Params,
    cache: decoder.Cache,
    seen: Bool[Array, 'B V'] | None,
    tokens: Int[Array, ' B'],
    places: Int[Array, ' B'],
    drawn: Int[Array, ' B'],
    budgets: Int[Array, ' B'],
    keys: UInt32[Array, 'B 2'],
    stop_ids: Int[Array, ' i'],
    leave: Int[Array, ''],
    *,
    config: config_lib.ModelConfig,
    backend: kernels.Backend,
    sampling: logits_lib.SamplingConfig,
    vocab_limit: int,
    dtype: DTypeLike,
    lora_scale: float,
) -> tuple[decoder.Cache, Seen, Int[Array, 'B t'], Int[Array, '']]:
  """Draws up to `STEPS` tokens per row.

  Args:
    params: Weights, packed.
    cache: Donated: do not use it again.
    seen: Donated.
    tokens: The last token of each row, not yet in the cache.
    places: Where it goes: the number of tokens before it.
    drawn: How many tokens each row has drawn.
    budgets: How many it may draw now; 0 for a row that is idle.
    keys: Of each row.
    stop_ids: A row that draws one of them is done.
    leave: Stops early when so many rows are done that were not before.
    config: The model.
    backend: Who computes attention, and on which devices.
    sampling: How to draw.
    vocab_limit: Ids from here on are never drawn.
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.

  Returns:
    Cache and seen, the t = STEPS tokens of each row (-1 if the logits were not
    finite; what follows its budget or its stop token is rubbish), and the
    number of steps taken.
  """
  params = weights.unpack(params, config, backend.platform)
  num_live = jnp.sum(budgets > 0)

  def busy(state):
    i, budgets, *_ = state
    left = jnp.sum(i < budgets)
    return (left > 0) & (num_live - left < leave)

  def step(state):
    i, budgets, tokens, cache, seen, out = state
    live = i < budgets
    at = places + i

    def attention(layer, q, k, v):
      new, *kept = attend.step(
          backend, q[:, 0], k[:, 0], v[:, 0], *cache[layer], at, live
      )
      return new[:, None], tuple(kept)

    x, cache = decoder.extend(
        params,
        config,
        tokens[:, None],
        at[:, None],
        attention,
        dtype=dtype,
        lora_scale=lora_scale,
    )
    logits = decoder.logits(params, config, x[:, 0])
    new = logits_lib.draw(logits, seen, keys, drawn + i, sampling, vocab_limit)
    out = jax.lax.dynamic_update_slice_in_dim(out, new[:, None], i, 1)
    stopped = jnp.any(new[:, None] == stop_ids[None], axis=1)
    budgets = jnp.where(stopped, 0, budgets)
    return i + 1, budgets, new, cache, _mark(seen, new, live), out

  out = jnp.zeros((len(tokens), STEPS), jnp.int32)
  state = (jnp.int32(0), budgets, tokens, cache, seen, out)
  num, _, _, cache, seen, out = jax.lax.while_loop(busy, step, state)
  return cache, _by_rows(seen, backend.mesh), out, num


def _mark(seen: Seen, tokens, live) -> Seen:
  if seen is None:
    return None
  ids = jnp.arange(seen.shape[1], dtype=jnp.int32)[None]
  return seen | ((ids == tokens[:, None]) & live[:, None])


@functools.partial(
    jax.jit, static_argnames=('mesh',), donate_argnames=('seen',)
)
def admit(
    seen: Bool[Array, 'B V'],
    rows: Int[Array, ' b'],
    new: Bool[Array, 'b V'],
    *,
    mesh: Mesh,
) -> Bool[Array, 'B V']:
  """Returns `seen` with new rows; a row number beyond B is left out."""
  return _by_rows(seen.at[rows].set(new, mode='drop'), mesh)


def _by_rows(seen: Seen, mesh: Mesh) -> Seen:
  """Keeps `seen` where it lay: else the next call is another program."""
  if seen is None or mesh.size == 1:
    return seen
  return jax.lax.with_sharding_constraint(seen, mesh_lib.rows(mesh))
