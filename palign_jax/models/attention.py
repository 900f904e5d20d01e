"""Grouped-query attention: from a part of a row, and beside a cache.

Scores and softmax are float32 whatever the inputs are.  Nothing of size T x T
is built: queries go in blocks, and a block sees only the keys up to its end.
Whole rows: flash.py.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

_BLOCK = 64  # Queries at a time; small, as nothing after a block is read.
_EXTENTS = 8  # Key lengths compiled for; more save work, less compile time.
_KEYS = 256  # Keys of a cache at a time, in `beside`.


def part(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    query_segments: Int[Array, 'B T'],
    key_segments: Int[Array, 'B S'],
    first: Int[Array, ''],
) -> Float[Array, 'B T N H']:
  """Attends from a part of a row to the whole of it, as `flash.causal` does.

  The backward pass computes the scores again, so that it never holds those of
  more than one block.

  Args:
    q: Queries of the part, rotated.
    k: Keys of the row, rotated.
    v: Its values.
    query_segments: Of the part.
    key_segments: Of the row.
    first: Where in the row the part begins.
  """
  T, S = q.shape[1], k.shape[1]
  size = min(_BLOCK, T)
  pad = ((0, 0), (0, -T % size))
  q = jnp.pad(q, (*pad, (0, 0), (0, 0)))
  query_segments = jnp.pad(query_segments, pad)
  num_extents = min(_EXTENTS, -(-S // _BLOCK))
  ends = [-(-S * (i + 1) // num_extents) for i in range(num_extents)]

  def reaching(end):
    """Returns what attends to the keys up to `end` only."""
    return lambda q, k, v, segments, row, at: _block(
        q, k[:, :end], v[:, :end], segments, row[:, :end], at
    )

  @functools.partial(jax.checkpoint, prevent_cse=False)
  def one(i, q, k, v, query_segments, key_segments):
    cut = lambda x: jax.lax.dynamic_slice_in_dim(x, i * size, size, 1)
    at = first + i * size
    last = jnp.minimum(at + size, S)
    which = jnp.sum(last > jnp.asarray(ends, last.dtype))
    args = cut(q), k, v, cut(query_segments), key_segments, at
    return jax.lax.switch(which, [reaching(end) for end in ends], *args)

  args = q, k, v, query_segments, key_segments
  steps = jnp.arange(q.shape[1] // size, dtype=jnp.int32)
  out = jax.lax.map(lambda i: one(i, *args), steps)
  out = jnp.moveaxis(out, 0, 1)
  return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :T]


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


def beside(
    q: Float[Array, 'B M T N H'],
    k: Float[Array, 'B M T K H'],
    v: Float[Array, 'B M T K H'],
    keys: Float[Array, 'R K H S'],
    values: Float[Array, 'R K S H'],
    rows: Int[Array, ' B'],
    seen: Int[Array, 'B M'],
) -> Float[Array, 'B M T N H']:
  """Attends to the beginning of a cached trunk, and causally to one's own fork.

  M forks leave each trunk; they see nothing of one another.  The two parts are
  merged by log-sum-exp, and the trunk is read in blocks up to the longest that
  any fork sees: a block beyond a fork's own part changes none of its bits.

  Args:
    q: Queries, rotated.
    k: Keys of the forks' own tokens, rotated.
    v: Their values.
    keys: Of all trunks, rotated; S is a multiple of 256, or below it.
    values: Of all trunks.
    rows: Which trunk each of the B rows reads.
    seen: How many tokens of it each fork sees.
  """
  B, M, T, N, H = q.shape
  K, S = k.shape[3], keys.shape[3]
  G, size = N // K, min(_KEYS, S)
  q = (q * q.dtype.type(H**-0.5)).reshape(B, M, T, K, G, H)
  q = q.transpose(0, 3, 1, 4, 2, 5)  # B K M G T H
  state = own_part(q, k, v)
  q_ZQH = q.reshape(B * K, M * G * T, H)
  limit = jnp.repeat(jnp.repeat(seen, K, axis=0), G * T, axis=1)[:, :, None]

  def step(i, state):
    top, total, out = state
    begin = i * size
    cut = jax.lax.dynamic_slice
    pick = lambda x, at, shape: jnp.concatenate(
        [cut(x, (rows[b], 0, *at), (1, K, *shape)) for b in range(B)]
    ).reshape(B * K, *shape)
    zero = jnp.zeros_like(begin)
    k_ZHS = pick(keys, (zero, begin), (H, size))
    v_ZSH = pick(values, (begin, zero), (size, H))
    score = jnp.einsum(
        'ZQH,ZHS->ZQS', q_ZQH, k_ZHS, preferred_element_type=jnp.float32
    )
    place = (begin + jnp.arange(size, dtype=jnp.int32))[None, None]
    score = jnp.where(place < limit, score, jnp.float32(-1e30))
    new_top = jnp.maximum(top, jnp.max(score, axis=-1, keepdims=True))
    old, p = jnp.exp(top - new_top), jnp.exp(score - new_top)
    add = jnp.einsum(
        'ZQS,ZSH->ZQH',
        p.astype(v_ZSH.dtype),
        v_ZSH,
        preferred_element_type=jnp.float32,
    )
    total = total * old + jnp.sum(p, axis=-1, keepdims=True)
    return new_top, total, out * old + add

  num_blocks = (jnp.max(seen) + size - 1) // size
  _, total, out = jax.lax.fori_loop(0, num_blocks, step, state)
  out = (out / total).astype(v.dtype).reshape(B, K, M, G, T, H)
  return out.transpose(0, 2, 4, 1, 3, 5).reshape(B, M, T, N, H)


def own_part(q, k, v):
  """Returns the running softmax [B*K M*G*T .] over each fork's own tokens.

  Its parts are the greatest score, the sum of exponentials below it, and their
  sum times values, all float32.
  """
  B, K, M, G, T, H = q.shape
  heads = lambda x: x.transpose(0, 3, 1, 2, 4).reshape(B * K * M, T, H)
  score = jnp.einsum(
      'YTH,YSH->YTS',
      q.reshape(B * K * M, G * T, H),
      heads(k),
      preferred_element_type=jnp.float32,
  ).reshape(B * K * M, G, T, T)
  place = jnp.arange(T, dtype=jnp.int32)
  mask = (place[:, None] >= place[None])[None, None]
  score = jnp.where(mask, score, jnp.float32(-1e30))
  top = jnp.max(score, axis=-1, keepdims=True)
  p = jnp.exp(score - top)
  out = jnp.einsum(
      'YTS,YSH->YTH',
      p.reshape(B * K * M, G * T, T).astype(v.dtype),
      heads(v),
      preferred_element_type=jnp.float32,
  )
  total = jnp.sum(p, axis=-1, keepdims=True)
  flat = lambda x: x.reshape(B * K, M * G * T, -1)
  return flat(top), flat(total), flat(out)
