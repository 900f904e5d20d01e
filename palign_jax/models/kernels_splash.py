"""Causal attention on a TPU: JAX's splash kernel, with packed rows.

Blocks above the diagonal are neither read nor computed, and nothing of size
T x T exists.  Differentiable.  The backward pass takes two kernels: the fused
one keeps a copy of the queries' gradient for every block of keys.
"""

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
)
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_LANES = 128  # A TPU's register is that wide; blocks are multiples of it.
_BLOCK = 512


def causal(
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    segments: Int[Array, 'B T'] | None,
    *,
    interpret: bool,
) -> Float[Array, 'B T N H']:
  """Returns what `attention.causal` returns, on one device.

  Args:
    q: Queries, rotated.
    k: Keys, rotated.
    v: Values.
    segments: See `attention.causal`.
    interpret: Run without a TPU, slowly.
  """
  T, N, H = q.shape[1:]
  block = min(_BLOCK, -(-T // _LANES) * _LANES)
  widths = ((0, 0), (0, -T % block))
  heads_first = lambda x: jnp.pad(x, (*widths, (0, 0), (0, 0))).swapaxes(1, 2)
  args = tuple(map(heads_first, (q * q.dtype.type(H**-0.5), k, v)))
  if segments is not None:
    ids = jnp.pad(segments, widths)
    args += (splash.SegmentIds(q=ids, kv=ids),)
  kernel = _kernel(T + widths[1][1], N, block, interpret)
  return jax.vmap(kernel)(*args).swapaxes(1, 2)[:, :T]


def _kernel(T: int, N: int, block: int, interpret: bool):
  # Not cached: its tables are arrays of the trace that it is made in.
  return splash.make_splash_mha(
      masks.MultiHeadMask([masks.CausalMask((T, T))] * N),
      block_sizes=splash.BlockSizes(
          block_q=block,
          block_kv=block,
          block_q_dkv=block,
          block_kv_dkv=block,
          block_q_dq=block,
          block_kv_dq=block,
      ),
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
  )
