"""Causal attention in blocks of queries, with a backward pass of its own.

Nothing of size T x T is built: a block of queries sees only the keys up to its
end, and the backward pass computes its scores again from the log-sum-exp that
the forward pass kept (FlashAttention-2, Dao 2023, arXiv 2307.08691).  Scores,
softmax and sums are float32 whatever the inputs are.

Inside, blocks are [block Z Q H]: Z is every row's every KV head, Q the queries
of a block for each head that shares it.  So each product is one of contiguous
matrices, three times as fast on a CPU as contracting heads in place.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from palign_jax.models import remat

_BLOCK = 128  # Queries at a time; small, as nothing after a block is read.
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
  pad = (0, 0), (0, -T % min(_BLOCK, T))
  q, k, v = (jnp.pad(x, (*pad, (0, 0), (0, 0))) for x in (q, k, v))
  segments = None if segments is None else jnp.pad(segments, pad)
  return _causal(q, k, v, segments)[:, :T]


@dataclasses.dataclass(frozen=True)
class _Blocks:
  """How arrays of these sizes are cut."""

  B: int
  T: int
  N: int
  K: int
  H: int

  @classmethod
  def of(cls, q: Array, k: Array) -> '_Blocks':
    B, T, N, H = q.shape
    return cls(B, T, N, k.shape[2], H)

  @property
  def size(self) -> int:
    return min(_BLOCK, self.T)

  def spans(self) -> list[tuple[int, int]]:
    """Returns which blocks are computed by one program, by its keys' length."""
    number = self.T // self.size
    parts = min(_EXTENTS, number)
    edges = [round(i * number / parts) for i in range(parts + 1)]
    return list(zip(edges, edges[1:], strict=False))

  def cut(self, x: Array) -> Array:
    """Returns what belongs to queries, [B T N .], as blocks [block Z Q .]."""
    x = x.reshape(self.B, -1, self.size, self.K, self.N // self.K, x.shape[3])
    x = x.transpose(1, 0, 3, 4, 2, 5)
    return x.reshape(len(x), self.B * self.K, -1, x.shape[-1])

  def join(self, x: Array) -> Array:
    """Undoes `cut`."""
    x = x.reshape(len(x), self.B, self.K, -1, self.size, x.shape[-1])
    return x.transpose(1, 0, 4, 2, 3, 5).reshape(self.B, self.T, self.N, -1)

  def heads(self, x: Array) -> Array:
    """Returns keys or values [B T K H] as [Z T H]."""
    return jnp.swapaxes(x, 1, 2).reshape(-1, self.T, self.H)

  def unheads(self, x: Array) -> Array:
    """Returns [Z H T] as [B T K H]."""
    return x.reshape(self.B, self.K, self.H, self.T).transpose(0, 3, 1, 2)

  def scores(self, q_ZQH: Array, k_ZSH: Array, segments, i: Array) -> Array:
    """Returns the scores [Z Q S] of block i; what it may not see is far off."""
    S, first = k_ZSH.shape[1], i * self.size
    place = first + jnp.arange(self.size, dtype=jnp.int32)
    mask = (place[:, None] >= jnp.arange(S, dtype=jnp.int32)[None])[None]
    if segments is not None:
      own = jax.lax.dynamic_slice_in_dim(segments, first, self.size, 1)
      mask = mask & (own[:, :, None] == segments[:, None, :S])
    bias = jnp.where(mask, jnp.float32(0), jnp.float32(-1e30))
    score = _product('ZQH,ZSH->ZQS', q_ZQH, k_ZSH)
    apart = score.reshape(self.B, self.K, -1, self.size, S)
    return (apart + bias[:, None, None]).reshape(score.shape)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scaled(q: Array) -> Array:
  return q * q.dtype.type(q.shape[-1] ** -0.5)


@jax.custom_vjp
def _causal(q, k, v, segments):
  return _forward(q, k, v, segments)[0]


def _forward(q, k, v, segments):
  by = _Blocks.of(q, k)
  q_blocks, keys, values = by.cut(_scaled(q)), by.heads(k), by.heads(v)
  parts = []
  for begin, end in by.spans():
    stop = end * by.size

    def one(_, part, k=keys[:, :stop], v=values[:, :stop]):
      i, q = part
      score = by.scores(q, k, segments, i)
      top = jnp.max(score, axis=-1, keepdims=True)
      p = jnp.exp(score - top)
      total = jnp.sum(p, axis=-1, keepdims=True)
      out = _product('ZQS,ZSH->ZQH', p.astype(v.dtype), v) / total
      return None, (out.astype(v.dtype), top + jnp.log(total))

    parts.append(_loop(one, None, begin, end, (q_blocks,))[1])
  out, log_z = map(jnp.concatenate, zip(*parts, strict=True))
  out, log_z = (remat.named(by.join(x), remat.ATTENTION) for x in (out, log_z))
  return out, (q, k, v, segments, out, log_z)


def _backward(kept, d_out):
  q, k, v, segments, out, log_z = kept
  by = _Blocks.of(q, k)
  keys, values = by.heads(k), by.heads(v)
  inner = (d_out.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  of_queries = _scaled(q), d_out, log_z, inner[..., None]
  blocks = tuple(map(by.cut, of_queries))
  # Transposed, [Z H S]: with S as rows these products take four times as long
  # on a CPU.
  d_keys = d_values = jnp.zeros((len(keys), by.H, by.T), jnp.float32)
  d_q = []
  for begin, end in by.spans():
    stop = end * by.size

    def one(sums, part, k=keys[:, :stop], v=values[:, :stop]):
      d_k, d_v = sums
      i, q, d_out, log_z, inner = part
      p = jnp.exp(by.scores(q, k, segments, i) - log_z)
      d_p = _product('ZQH,ZSH->ZQS', d_out, v)
      d_score = (p * (d_p - inner)).astype(k.dtype)
      d_v += _product('ZQH,ZQS->ZHS', d_out, p.astype(v.dtype))
      d_k += _product('ZQH,ZQS->ZHS', q, d_score)
      d_q = _product('ZQS,ZSH->ZQH', d_score, k).astype(q.dtype)
      return (d_k, d_v), d_q

    zeros = (jnp.zeros((*d_keys.shape[:2], stop), jnp.float32),) * 2
    (d_k, d_v), some = _loop(one, zeros, begin, end, blocks)
    d_keys = d_keys.at[:, :, :stop].add(d_k)
    d_values = d_values.at[:, :, :stop].add(d_v)
    d_q.append(some)
  d_q = _scaled(by.join(jnp.concatenate(d_q)))
  back = lambda d: by.unheads(d).astype(k.dtype)
  return d_q, back(d_keys), back(d_values), None


_causal.defvjp(_forward, _backward)


def _loop(one, state, begin: int, end: int, blocks: tuple[Array, ...]):
  """Scans over some blocks, with their numbers."""
  numbers = jnp.arange(begin, end, dtype=jnp.int32)
  return jax.lax.scan(one, state, (numbers, *(x[begin:end] for x in blocks)))
