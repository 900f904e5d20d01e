"""The parts of a block, as Flax NNX modules.

A parameter carries the logical names of its axes as `axes` metadata;
`parallel/rules.py` says where each is split.  Kernels are stored in the dtype
of the checkpoint and cast to the dtype of the computation on use.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from palign_jax.models import config as config_lib


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> jax.Array:
  scale = jnp.float32(1 / math.sqrt(fan_in))
  return jax.random.normal(rngs.params(), shape, jnp.float32) * scale


def _contract(x: jax.Array, kernel: jax.Array, num_inputs: int) -> jax.Array:
  """Returns the sum over the last `num_inputs` axes of x, the first of kernel.

  As one product of two matrices: XLA on a CPU makes transposed copies for the
  gradient of a product of more axes, which cost a quarter of a training step.
  """
  lead, out = x.shape[: x.ndim - num_inputs], kernel.shape[num_inputs:]
  fan_in = math.prod(kernel.shape[:num_inputs])
  y = x.reshape(-1, fan_in) @ kernel.reshape(fan_in, -1)
  return y.reshape(*lead, *out)


class RMSNorm(nnx.Module):
  """Root mean square norm over the last axis, computed in float32."""

  def __init__(self, dim: int, axis: str, eps: float):
    self.scale = nnx.Param(jnp.ones(dim, jnp.float32), axes=(axis,))
    self.eps = eps

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(
        jnp.mean(y * y, axis=-1, keepdims=True) + jnp.float32(self.eps)
    )
    scale = self.scale[...].astype(jnp.float32)
    y = y * scale.reshape((1,) * (x.ndim - 1) + scale.shape)
    return y.astype(x.dtype)


class Projection(nnx.Module):
  """A linear map from the last axes of its input, with an optional adapter.

  With `rank` > 0 it adds lora_scale * (x A) B, where A and B are float32 and
  so is the sum of the two until it is cast back (LoRA, Hu et al. 2021,
  arXiv 2106.09685).
  """

  def __init__(
      self,
      inputs: dict[str, int],
      outputs: dict[str, int],
      *,
      bias: bool,
      rank: int,
      rngs: nnx.Rngs,
  ):
    """Args map the logical names of the axes to their sizes, in order."""
    into, out = tuple(inputs.values()), tuple(outputs.values())
    fan_in = math.prod(into)
    self.num_inputs = len(into)
    self.kernel = nnx.Param(
        _normal(rngs, into + out, fan_in), axes=(*inputs, *outputs)
    )
    if bias:
      self.bias = nnx.Param(jnp.zeros(out, jnp.float32), axes=(*outputs,))
    if rank:
      self.lora_a = nnx.Param(
          _normal(rngs, (*into, rank), fan_in), axes=(*inputs, 'rank')
      )
      self.lora_b = nnx.Param(
          jnp.zeros((rank, *out), jnp.float32), axes=('rank', *outputs)
      )

  def __call__(self, x: Array, lora_scale: float) -> Array:
    y = _contract(x, self.kernel[...].astype(x.dtype), self.num_inputs)
    if hasattr(self, 'bias'):
      bias = self.bias[...].astype(x.dtype)
      y = y + bias.reshape((1,) * (y.ndim - bias.ndim) + bias.shape)
    if hasattr(self, 'lora_a'):
      a, b = self.lora_a[...], self.lora_b[...]
      down = _contract(x.astype(a.dtype), a, self.num_inputs)
      delta = _contract(down, b, 1) * a.dtype.type(lora_scale)
      y = (y.astype(delta.dtype) + delta).astype(x.dtype)
    return y


class Block(nnx.Module):
  """One layer: attention, then a gated MLP, each on a normalised residual."""

  def __init__(
      self, config: config_lib.ModelConfig, *, rank: int, rngs: nnx.Rngs
  ):
    c = config
    embed, mlp = {'embed': c.embed_dim}, {'mlp': c.mlp_dim}
    heads = {'heads': c.num_heads, 'head_dim': c.head_dim}
    kv_heads = {'kv_heads': c.num_kv_heads, 'head_dim': c.head_dim}
    make = lambda i, o, bias=False: Projection(
        i, o, bias=bias, rank=rank, rngs=rngs
    )
    norm = lambda: RMSNorm(c.embed_dim, 'embed', c.norm_eps)
    self.attn_norm = norm()
    self.q = make(embed, heads, c.qkv_bias)
    self.k = make(embed, kv_heads, c.qkv_bias)
    self.v = make(embed, kv_heads, c.qkv_bias)
    self.o = make(heads, embed)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.head_dim, 'head_dim', c.norm_eps)
      self.k_norm = RMSNorm(c.head_dim, 'head_dim', c.norm_eps)
    self.mlp_norm = norm()
    self.gate = make(embed, mlp)
    self.up = make(embed, mlp)
    self.down = make(mlp, embed)

  def __call__(self, x, rotate, attend, lora_scale: float):
    """Returns the residual stream one layer on, and what `attend` keeps.

    Args:
      x: [B T D].
      rotate: Turns queries or keys [B T N H] by their positions.
      attend: (q, k, v) -> (attended values [B T N H], anything to keep).
      lora_scale: Factor on the adapters' part; not read without adapters.
    """
    k, v = self.keys_values(x, rotate, lora_scale)
    q = self.q(self.attn_norm(x), lora_scale)
    if hasattr(self, 'q_norm'):
      q = self.q_norm(q)
    out, kept = attend(rotate(q), k, v)
    x = x + self.o(out, lora_scale)
    y = self.mlp_norm(x)
    gate = jax.nn.silu(self.gate(y, lora_scale))
    return x + self.down(gate * self.up(y, lora_scale), lora_scale), kept

  def keys_values(self, x, rotate, lora_scale: float):
    """Returns rotated keys and values [B T K H]: all that a cache needs."""
    y = self.attn_norm(x)
    k, v = self.k(y, lora_scale), self.v(y, lora_scale)
    if hasattr(self, 'k_norm'):
      k = self.k_norm(k)
    return rotate(k), v
