"""Causal attention on a TPU: JAX's splash kernel, with packed rows.

Blocks above the diagonal are neither read nor computed, and nothing of size
T x T exists.  Differentiable.  The backward pass takes two kernels: the fused
one keeps a copy of the queries' gradient for every block of keys.
"""

import math

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
    splash_attention_mask as masks,
)
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from palign_jax.models import remat

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
  """Returns what `flash.causal` returns, on one device.

  Args:
    q: Queries, rotated.
    k: Keys, rotated.
    v: Values.
    segments: See `flash.causal`.
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


def in_parts(T: int, N: int, parts: int, interpret: bool):
  """Returns a kernel for rows whose queries lie on several devices.

  Under `shard_map` it goes in beside its inputs, with `sharding_spec` of it:
  each device gets the part of its tables that tells where its queries are.

  Args:
    T: Tokens of a row; see `refusal`.
    N: Heads of a device.
    parts: How many devices have a part of the row.
    interpret: Run without a TPU, slowly.
  """
  return _kernel(T, N, math.gcd(_BLOCK, T // parts), interpret, parts)


def refusal(T: int, parts: int) -> str | None:
  """Returns why rows of T tokens cannot be split so, None if they can."""
  if T % (parts * _LANES):
    return f'{T} tokens in {parts} parts are no multiples of {_LANES}'
  return None


def sharding_spec(kernel, mesh: Mesh):
  """Returns how the tables of an `in_parts` kernel lie over sequence."""
  where = NamedSharding(mesh, PartitionSpec(None, 'sequence'))
  return kernel.manual_sharding_spec(where)


def part(
    kernel,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B S K H'],
    v: Float[Array, 'B S K H'],
    query_segments: Int[Array, 'B T'],
    key_segments: Int[Array, 'B S'],
) -> Float[Array, 'B T N H']:
  """Attends from a part of each row to all of it; see `attention.part`."""
  ids = splash.SegmentIds(q=query_segments, kv=key_segments)
  q = q * q.dtype.type(q.shape[-1] ** -0.5)
  args = (x.swapaxes(1, 2) for x in (q, k, v))
  return jax.vmap(kernel)(*args, ids).swapaxes(1, 2)


def _kernel(T: int, N: int, block: int, interpret: bool, parts: int = 1):
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
      q_seq_shards=parts,
      # So that `remat` may keep its sums too, and need not run it again.
      residual_checkpoint_name=remat.ATTENTION,
      interpret=interpret,
  )
