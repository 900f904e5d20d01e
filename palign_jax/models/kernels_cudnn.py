"""Attention on NVIDIA GPUs: cuDNN's flash attention.

It takes bfloat16 and float16, heads of at most 128 in steps of 8, and no
segments.  Of a cache it wants the slots before the heads' width, so one query
per row is left to XLA, which reads our layout in place; a chunk of queries pays
for the copy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def refusal(dtype: jnp.dtype, H: int) -> str | None:
  """Returns why cuDNN cannot take such inputs, None if it can."""
  if dtype not in (jnp.bfloat16, jnp.float16):
    return f'it takes bfloat16 and float16 and got {jnp.dtype(dtype).name}'
  if H > 128 or H % 8:
    return f'it takes heads of 8, 16, ..., 128 and got {H}'
  return None


def causal(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
) -> Float[Array, 'B T N H']:
  """Returns what `flash.causal` returns without segments."""
  return jax.nn.dot_product_attention(
      q, k, v, is_causal=True, implementation='cudnn'
  )


def beside(
    q: Float[Array, 'B M T N H'],
    k: Float[Array, 'B M T K H'],
    v: Float[Array, 'B M T K H'],
    keys: Float[Array, 'R K H S'],
    values: Float[Array, 'R K S H'],
    rows: Int[Array, ' B'],
    seen: Int[Array, 'B M'],
    *,
    implementation: str = 'cudnn',
) -> Float[Array, 'B M T N H']:
  """Returns what `attention.beside` returns.

  One call over the cache and all forks' own tokens, with a mask: two calls
  would have to be merged by their log-sum-exp, which JAX rounds to bfloat16,
  up to 6% of a part's weight.

  Args:
    q: Queries, rotated.
    k: Keys of the forks' own tokens, rotated.
    v: Their values.
    keys: Of all trunks, rotated.
    values: Of all trunks.
    rows: Which trunk each of the B rows reads.
    seen: How many tokens of it each fork sees.
    implementation: 'xla' for a test of the mask without a GPU.
  """
  B, M, T, N, H = q.shape
  S = keys.shape[3]
  flat = lambda x: x.reshape(B, M * T, *x.shape[3:])
  all_k = jnp.concatenate([keys[rows].transpose(0, 3, 1, 2), flat(k)], axis=1)
  all_v = jnp.concatenate([values[rows].swapaxes(1, 2), flat(v)], axis=1)
  slot = jnp.arange(S, dtype=jnp.int32)
  trunk = slot[None, None] < jnp.repeat(seen, T, axis=1)[:, :, None]
  place = jnp.arange(M * T, dtype=jnp.int32)
  query, key = place[:, None], place[None]
  own = (query // T == key // T) & (query >= key)
  own = jnp.broadcast_to(own[None], (B, M * T, M * T))
  mask = jnp.concatenate([trunk, own], axis=2)[:, None]
  out = jax.nn.dot_product_attention(
      flat(q), all_k, all_v, mask=mask, implementation=implementation
  )
  return out.reshape(B, M, T, N, H)
