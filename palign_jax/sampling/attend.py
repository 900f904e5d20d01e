"""Attention of decoding rows, each at its own place in its own cache.

Rows are read in groups, each up to the furthest of its own rows, in blocks of
keys.  A block that a row does not see changes none of its bits, so neighbours
do not matter.  A TPU's kernel reads each row up to its own end.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from palign_jax.models import decoder, kernels, kernels_cache
from palign_jax.parallel import mesh as mesh_lib

# Keys and rows at a time.  On a CPU a small product costs what it computes; an
# accelerator wants enough of it.
_BLOCK = {'cpu': 128}, 1024
_GROUP = {'cpu': 8}, 32


def step(
    backend: kernels.Backend,
    q: Float[Array, 'B N H'],
    k: Float[Array, 'B K H'],
    v: Float[Array, 'B K H'],
    keys: Float[Array, 'B K H S'],
    values: Float[Array, 'B K S H'],
    places: Int[Array, ' B'],
    live: Bool[Array, ' B'],
) -> tuple[
    Float[Array, 'B N H'], Float[Array, 'B K H S'], Float[Array, 'B K S H']
]:
  """Stores one token per row and attends to it and all before it.

  Args:
    backend: Who computes; on its mesh rows lie over data and fsdp, heads over
      tensor.
    q: Queries, rotated.
    k: Keys of the same tokens, rotated.
    v: Values.
    keys: The cache's; donated in effect.
    values: The cache's.
    places: Where each row's token goes.
    live: Rows that are not live store theirs in the last slot, where it harms
      nobody, and get rubbish.

  Returns:
    The attended values, and the cache.
  """
  mesh, refusals = backend.mesh, {'pallas': kernels.odd(keys.shape[3])}
  if backend.pick('beside', refusals) == 'pallas':
    local = functools.partial(_local_kernel, interpret=backend.interpret)
  else:
    local = functools.partial(_local, platform=backend.platform)
  if mesh is None or mesh.size == 1:
    return local(q, k, v, keys, values, places, live)
  rows, heads = mesh_lib.ROWS, decoder.CACHE
  return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(heads,) * 5 + (rows, rows),
      out_specs=(heads,) * 3,
      check_vma=False,
  )(q, k, v, keys, values, places, live)


def _store(k, v, keys, values, places, live):
  """Returns the cache with one token per row [B K H] more."""
  places = jnp.where(live, places, jnp.int32(keys.shape[3] - 1))
  each = jnp.arange(len(k), dtype=jnp.int32)
  how = dict(mode='promise_in_bounds', unique_indices=True)
  keys = keys.at[each, :, :, places].set(k.astype(keys.dtype), **how)
  values = values.at[each, :, places].set(v.astype(values.dtype), **how)
  return keys, values


def _local_kernel(q, k, v, keys, values, places, live, *, interpret: bool):
  """A row is a fork of one token that leaves its own trunk."""
  keys, values = _store(k, v, keys, values, places, live)
  out = kernels_cache.beside(
      *(x[:, None, None] for x in (q, k, v)),
      keys,
      values,
      jnp.arange(len(q), dtype=jnp.int32),
      jnp.where(live, places, 0)[:, None],
      interpret=interpret,
  )
  return out[:, 0, 0], keys, values


def _local(q, k, v, keys, values, places, live, *, platform: str):
  keys, values = _store(k, v, keys, values, places, live)
  seen = jnp.where(live, places + 1, 0)
  B, S = len(q), keys.shape[3]
  size = group(B, platform)
  block = min(_BLOCK[0].get(platform, _BLOCK[1]), S)
  if size == B:
    return _attend(q, keys, values, seen, jnp.int32(0), block), keys, values

  def one(g, out):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, g * size, size, 0)
    new = _attend(cut(q), keys, values, cut(seen), g * size, block)
    return jax.lax.dynamic_update_slice_in_dim(out, new, g * size, 0)

  out = jax.lax.fori_loop(0, B // size, one, jnp.zeros_like(q))
  return out, keys, values


def group(num_rows: int, platform: str) -> int:
  """Returns how many rows of a device are attended together."""
  size = _GROUP[0].get(platform, _GROUP[1])
  return num_rows if num_rows % size else size


def _attend(q, keys, values, seen, first, size: int):
  """Attends from rows first, first + 1, ... to what each has seen."""
  R, N, H = q.shape
  K, S = keys.shape[1], keys.shape[3]
  G = N // K
  q_RKGH = (q * q.dtype.type(H**-0.5)).reshape(R, K, G, H)
  cut, zero = jax.lax.dynamic_slice, jnp.int32(0)

  def block(i, state):
    top, total, out = state
    # The last block may begin earlier, to end with the cache.
    begin = jnp.minimum(i * size, S - size)
    k_RKHS = cut(keys, (first, zero, zero, begin), (R, K, H, size))
    v_RKSH = cut(values, (first, zero, begin, zero), (R, K, size, H))
    score = jnp.einsum(
        'RKGH,RKHS->RKGS',
        q_RKGH,
        k_RKHS,
        preferred_element_type=jnp.float32,
    )
    place = (begin + jnp.arange(size, dtype=jnp.int32))[None]
    valid = (place < seen[:, None]) & (place >= i * size)
    score = jnp.where(valid[:, None, None], score, jnp.float32(-1e30))
    new_top = jnp.maximum(top, jnp.max(score, axis=-1, keepdims=True))
    old, p = jnp.exp(top - new_top), jnp.exp(score - new_top)
    add = jnp.einsum(
        'RKGS,RKSH->RKGH',
        p.astype(v_RKSH.dtype),
        v_RKSH,
        preferred_element_type=jnp.float32,
    )
    total = total * old + jnp.sum(p, axis=-1, keepdims=True)
    return new_top, total, out * old + add

  num_blocks = (jnp.max(seen) + size - 1) // size
  top = jnp.full((R, K, G, 1), -1e30, jnp.float32)
  zeros = jnp.zeros((R, K, G, H), jnp.float32)
  state = top, jnp.zeros_like(top), zeros
  _, total, out = jax.lax.fori_loop(0, num_blocks, block, state)
  # A group of idle rows reads nothing; no NaN may come of it and be stored.
  total = jnp.maximum(total, jnp.float32(1e-30))
  return (out / total).astype(q.dtype).reshape(R, N, H)
