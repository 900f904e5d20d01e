"""Attention of decoding rows, each at its own place in its own cache.

Rows are read in groups, each up to the furthest of its own rows, in blocks of
keys.  A block that a row does not see changes none of its bits, so neighbours
do not matter.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from palign_jax.models import decoder
from palign_jax.parallel import mesh as mesh_lib

BLOCK = 128  # Keys at a time; caches hold a multiple.
_GROUP = 8  # Rows at a time, where a small product costs what it computes.


def step(
    mesh: Mesh,
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
    mesh: Rows over data and fsdp, heads over tensor.
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
  if mesh.size == 1:
    return _local(q, k, v, keys, values, places, live)
  rows, heads = mesh_lib.ROWS, decoder.CACHE
  return jax.shard_map(
      _local,
      mesh=mesh,
      in_specs=(heads,) * 5 + (rows, rows),
      out_specs=(heads,) * 3,
      check_vma=False,
  )(q, k, v, keys, values, places, live)


def _local(q, k, v, keys, values, places, live):
  B, S = q.shape[0], keys.shape[3]
  places = jnp.where(live, places, S - 1)
  each = jnp.arange(B, dtype=jnp.int32)
  how = dict(mode='promise_in_bounds', unique_indices=True)
  keys = keys.at[each, :, :, places].set(k.astype(keys.dtype), **how)
  values = values.at[each, :, places].set(v.astype(values.dtype), **how)
  seen = jnp.where(live, places + 1, 0)
  size = _GROUP if B % _GROUP == 0 and _is_cpu() else B
  if size == B:
    return _group(q, keys, values, seen, jnp.int32(0)), keys, values

  def one(g, out):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, g * size, size, 0)
    new = _group(cut(q), keys, values, cut(seen), g * size)
    return jax.lax.dynamic_update_slice_in_dim(out, new, g * size, 0)

  out = jax.lax.fori_loop(0, B // size, one, jnp.zeros_like(q))
  return out, keys, values


def _is_cpu() -> bool:
  return jax.default_backend() == 'cpu'


def _group(q, keys, values, seen, first):
  """Attends from rows first, first + 1, ... to what each has seen."""
  R, N, H = q.shape
  K, S = keys.shape[1], keys.shape[3]
  G, size = N // K, min(BLOCK if _is_cpu() else 8 * BLOCK, S)
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
