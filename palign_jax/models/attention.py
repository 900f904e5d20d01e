"""Grouped-query attention: over one's own sequence, and over a cache.

Scores and softmax are float32 whatever the inputs are.  Nothing of size T x T
is built: queries go in blocks, and a block sees only the keys up to its end.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 64  # Queries at a time; small, as nothing after a block is read.
_EXTENTS = 8  # Key lengths compiled for; more save work, less compile time.


def causal(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    segments: Int[Array, 'B T'] | None,
) -> Float[Array, 'B T N H']:
  """Attends to earlier positions of the same sequence.

  Args:
    q: Queries, rotated.
    k: Keys, rotated.
    v: Values.
    segments: Which sequence of its row each token belongs to, for packed rows;
      None if each row is one sequence (padding on the right is then harmless,
      as nothing before it looks there).

  Returns:
    The attended values.  Rows of padding hold finite rubbish.
  """
  T = q.shape[1]
  if T <= _BLOCK:
    return _block(q, k, v, segments, segments, jnp.int32(0))
  pad = -T % _BLOCK
  if pad:
    widths = ((0, 0), (0, pad))
    q, k, v = (jnp.pad(x, widths + ((0, 0), (0, 0))) for x in (q, k, v))
    segments = None if segments is None else jnp.pad(segments, widths)
  num_blocks = (T + pad) // _BLOCK
  extents = min(_EXTENTS, num_blocks)
  edges = [round(i * num_blocks / extents) for i in range(extents + 1)]
  outs = []
  for begin, end in zip(edges, edges[1:], strict=False):
    outs.append(_span(q, k, v, segments, begin, end))
  return jnp.concatenate(outs, axis=1)[:, :T]


def _span(q, k, v, segments, begin: int, end: int):
  """Attends from query blocks begin..end to the keys up to the last of them."""
  stop = end * _BLOCK
  keys, values = k[:, :stop], v[:, :stop]
  key_segments = None if segments is None else segments[:, :stop]

  def one(i):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * _BLOCK, _BLOCK, 1)
    query_segments = None if segments is None else cut(segments)
    return _block(
        cut(q), keys, values, query_segments, key_segments, i * _BLOCK
    )

  if end - begin == 1:
    return one(jnp.int32(begin))
  out = jax.lax.map(one, jnp.arange(begin, end, dtype=jnp.int32))
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(q.shape[0], -1, *q.shape[2:])


def _block(q, k, v, query_segments, key_segments, first):
  """Attends from queries that begin at position `first` of the keys."""
  t, S = q.shape[1], k.shape[1]
  place_t = first + jnp.arange(t, dtype=jnp.int32)
  mask = (place_t[:, None] >= jnp.arange(S, dtype=jnp.int32)[None])[None]
  if query_segments is not None:
    mask = mask & (query_segments[:, :, None] == key_segments[:, None, :])
  return masked(q, k, v, mask)


def masked(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    mask: Bool[Array, 'b T S'],
) -> Float[Array, 'B T N H']:
  """Attends where `mask` is true; b is B, or 1 for every row alike.

  A query that may see nothing gets the mean of all values.
  """
  B, T, N, H = q.shape
  S, K = k.shape[1:3]
  # One matrix product per row and KV head, over contiguous operands: on a CPU
  # three times as fast as contracting [B T K G H] with [B S K H] in place.
  heads = lambda x: jnp.swapaxes(x, 1, 2).reshape(B * K, -1, H)
  q = (q * q.dtype.type(H**-0.5)).reshape(B, T, K, N // K, H)
  q_ZTH = jnp.moveaxis(q, 1, 3).reshape(B * K, -1, H)
  score = jnp.einsum(
      'ZTH,ZSH->ZTS', q_ZTH, heads(k), preferred_element_type=jnp.float32
  ).reshape(B, K, N // K, T, S)
  bias = jnp.where(mask, jnp.float32(0), jnp.float32(-1e30))
  p = jax.nn.softmax(score + bias[:, None, None], axis=-1).astype(v.dtype)
  out = jnp.einsum('ZTS,ZSH->ZTH', p.reshape(B * K, -1, S), heads(v))
  out_BKGTH = out.reshape(B, K, N // K, T, H)
  return jnp.moveaxis(out_BKGTH, 3, 1).reshape(B, T, N, H)


def cached(
    q: Float[Array, 'B N H'],
    k: Float[Array, 'B K H S'],
    v: Float[Array, 'B K S H'],
    valid: Bool[Array, 'B S'],
) -> Float[Array, 'B N H']:
  """Attends from one query per row to the valid slots of a cache.

  Keys lie with their slots last: both products then run along memory, which
  makes a whole decoding step a quarter cheaper on a CPU.
  """
  B, N, H = q.shape
  K = k.shape[1]
  q_BKGH = (q * q.dtype.type(H**-0.5)).reshape(B, K, N // K, H)
  score_BKGS = jnp.einsum(
      'BKGH,BKHS->BKGS', q_BKGH, k, preferred_element_type=jnp.float32
  )
  score_BKGS = jnp.where(valid[:, None, None], score_BKGS, jnp.float32(-1e30))
  p_BKGS = jax.nn.softmax(score_BKGS, axis=-1).astype(v.dtype)
  return jnp.einsum('BKGS,BKSH->BKGH', p_BKGS, v).reshape(B, N, H)
