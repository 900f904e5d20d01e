"""Attention over a cache on a TPU, reading only the blocks that somebody sees.

JAX's paged kernels want pages [K pages slots H], filled from the first slot on.
Ours are [K H S] and [K S H] per row, seen up to another place by every query or
with holes, so this is a kernel for these.  A table says which blocks of a row's
cache any query of a block of queries sees; the others are not fetched.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from palign_jax.models import attention

LANES = 128  # A TPU's register is that wide: S is a multiple of it.
_QUERIES = 512
_SLOTS = {True: 1024, False: 512}  # By whether queries are few.
_NOTHING = -1e30


def beside(
    q: Float[Array, 'B M T N H'],
    k: Float[Array, 'B M T K H'],
    v: Float[Array, 'B M T K H'],
    keys: Float[Array, 'R K H S'],
    values: Float[Array, 'R K S H'],
    rows: Int[Array, ' B'],
    seen: Int[Array, 'B M'],
    *,
    interpret: bool,
) -> Float[Array, 'B M T N H']:
  """Returns what `attention.beside` returns.

  The own tokens are few: XLA's part.

  Args:
    q: Queries, rotated.
    k: Keys of the forks' own tokens, rotated.
    v: Their values.
    keys: Of all trunks, rotated.
    values: Of all trunks.
    rows: Which trunk each of the B rows reads.
    seen: How many tokens of it each fork sees.
    interpret: Run without a TPU, slowly.
  """
  B, M, T, N, H = q.shape
  K, S = keys.shape[1], keys.shape[3]
  G = N // K
  q = (q * q.dtype.type(H**-0.5)).reshape(B, M, T, K, G, H)
  q = q.transpose(0, 3, 1, 4, 2, 5)  # B K M G T H
  parts = attention.own_part(q, k, v)
  own_top, total, own = (x.reshape(B, K, M * G * T, -1) for x in parts)
  part, top = _attend(
      q.reshape(B, K, M * G * T, H),
      keys,
      values,
      rows,
      jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (B, S)),
      jnp.repeat(seen, G * T, axis=1),
      interpret=interpret,
  )
  both = jnp.maximum(own_top, top)
  a, b = jnp.exp(own_top - both), jnp.exp(top - both)
  out = ((own * a + part * b) / (total * a + b)).astype(v.dtype)
  out = out.reshape(B, K, M, G, T, H).transpose(0, 2, 4, 1, 3, 5)
  return out.reshape(B, M, T, N, H)


def _attend(q_BKQH, keys, values, rows, place_BS, limit_BQ, *, interpret: bool):
  """Attends to the slots whose place is below the query's limit.

  Returns:
    The attended values [B K Q H] and the log-sum-exp [B K Q 1], both float32;
    zeros and -1e30 where a query sees nothing.
  """
  B, K, Q, H = q_BKQH.shape
  S = keys.shape[3]
  num_queries = -(-Q // _QUERIES)
  bq = -(-Q // (num_queries * 16)) * 16  # Tiles of bfloat16 have 16 rows.
  bs = _SLOTS[Q <= 64]
  while S % bs:
    bs //= 2
  assert bs >= LANES, f'{S} slots'
  pad = num_queries * bq - Q
  q_BKQH = jnp.pad(q_BKQH, ((0, 0), (0, 0), (0, pad), (0, 0)))
  limit_BQ = jnp.pad(limit_BQ, ((0, 0), (0, pad)))  # They see nothing.
  live, fetch = _table(place_BS, limit_BQ, num_queries, S // bs)
  grid = (B, K, num_queries, S // bs)
  at = lambda b, i, j: (b * grid[2] + i) * grid[3] + j
  queries = lambda b, h, i, j, *_: (b, h, i, 0)
  slots = lambda b, i, j, fetch: fetch[at(b, i, j)]
  out, top = pl.pallas_call(
      functools.partial(_kernel, at=at),
      grid_spec=pltpu.PrefetchScalarGridSpec(
          num_scalar_prefetch=3,
          grid=grid,
          in_specs=[
              pl.BlockSpec((None, None, bq, H), queries),
              pl.BlockSpec(
                  (None, None, H, bs),
                  lambda b, h, i, j, r, _, f: (r[b], h, 0, slots(b, i, j, f)),
              ),
              pl.BlockSpec(
                  (None, None, bs, H),
                  lambda b, h, i, j, r, _, f: (r[b], h, slots(b, i, j, f), 0),
              ),
              pl.BlockSpec(
                  (None, 1, bs),
                  lambda b, h, i, j, r, _, f: (b, 0, slots(b, i, j, f)),
              ),
              pl.BlockSpec((None, bq, 1), lambda b, h, i, j, *_: (b, i, 0)),
          ],
          out_specs=[
              pl.BlockSpec((None, None, bq, H), queries),
              pl.BlockSpec((None, None, bq, 1), queries),
          ],
          scratch_shapes=[
              pltpu.VMEM((bq, 1), jnp.float32),
              pltpu.VMEM((bq, 1), jnp.float32),
              pltpu.VMEM((bq, H), jnp.float32),
          ],
      ),
      out_shape=[
          jax.ShapeDtypeStruct((B, K, Q + pad, H), jnp.float32),
          jax.ShapeDtypeStruct((B, K, Q + pad, 1), jnp.float32),
      ],
      compiler_params=pltpu.CompilerParams(
          dimension_semantics=('parallel', 'parallel', 'parallel', 'arbitrary')
      ),
      name='attend_to_cache',
      interpret=interpret,
  )(
      rows,
      live,
      fetch,
      q_BKQH,
      keys,
      values,
      place_BS[:, None],
      limit_BQ[:, :, None],
  )
  return out[:, :, :Q], top[:, :, :Q]


def _table(place_BS, limit_BQ, num_queries: int, num_slots: int):
  """Returns which blocks of slots are seen, and which to fetch meanwhile.

  A block that nobody sees repeats the one before, which costs nothing.
  """
  B = len(place_BS)
  first = place_BS.reshape(B, 1, num_slots, -1).min(axis=-1)
  last = limit_BQ.reshape(B, num_queries, 1, -1).max(axis=-1)
  live = first < last
  number = jnp.arange(num_slots, dtype=jnp.int32)
  fetch = jax.lax.cummax(jnp.where(live, number, jnp.int32(0)), axis=2)
  return live.astype(jnp.int32).reshape(-1), fetch.reshape(-1)


def _kernel(
    _, live, __, q, k, v, place, limit, out, lse, top, total, sums, *, at
):
  """Adds one block of slots to the running softmax of a block of queries."""
  b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

  @pl.when(j == 0)
  def _begin():
    top[...] = jnp.full_like(top, _NOTHING)
    total[...] = jnp.zeros_like(total)
    sums[...] = jnp.zeros_like(sums)

  @pl.when(live[at(b, i, j)] > 0)
  def _add():
    dot = functools.partial(jnp.dot, preferred_element_type=jnp.float32)
    mask = place[...] < limit[...]
    score = jnp.where(mask, dot(q[...], k[...]), jnp.float32(_NOTHING))
    new = jnp.maximum(top[...], jnp.max(score, axis=1, keepdims=True))
    # The mask again: for a query that has seen nothing yet, exp(0) is 1.
    p = jnp.where(mask, jnp.exp(score - new), jnp.float32(0))
    old = jnp.exp(top[...] - new)
    total[...] = total[...] * old + jnp.sum(p, axis=1, keepdims=True)
    sums[...] = sums[...] * old + dot(p.astype(v.dtype), v[...])
    top[...] = new

  @pl.when(j == pl.num_programs(3) - 1)
  def _end():
    some = total[...] > 0
    safe = jnp.where(some, total[...], jnp.float32(1))
    out[...] = sums[...] / safe
    lse[...] = jnp.where(some, top[...] + jnp.log(safe), jnp.float32(_NOTHING))
