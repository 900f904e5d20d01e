"""The parts of a block, as Flax NNX modules.

A parameter carries the logical names of its axes as `axes` metadata;
`parallel/rules.py` says where each is split.  Kernels are stored in the dtype
of the checkpoint and cast to the dtype of the computation on use.
"""

from collections.abc import Mapping
import math
import types

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from palign_jax.models import config as config_lib, remat
from palign_jax.parallel import rules

# Of what lies beside a kernel and has no axis of its own to be split over fsdp.
_SMALL_AXES = {'mlp': 'small_mlp', 'head_dim': 'small_head_dim'}


def _normal(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> jax.Array:
  scale = jnp.float32(1 / math.sqrt(fan_in))
  return jax.random.normal(rngs.params(), shape, jnp.float32) * scale


def _contract(
    x: jax.Array, kernel: jax.Array, num_inputs: int, flat: bool
) -> jax.Array:
  """Returns the sum over the last `num_inputs` axes of x, the first of kernel.

  As one product of two matrices if `flat`: XLA on a CPU makes transposed copies
  for the gradient of a product of more axes, which cost a quarter of a training
  step.  But rows and tokens that are both split have no common axis to be
  split along.
  """
  lead, out = x.shape[: x.ndim - num_inputs], kernel.shape[num_inputs:]
  fan_in = math.prod(kernel.shape[:num_inputs])
  rows = (-1,) if flat else lead
  y = x.reshape(*rows, fan_in) @ kernel.reshape(fan_in, -1)
  return y.reshape(*lead, *out)


def _beside(y: jax.Array, each: jax.Array, combine) -> jax.Array:
  """Combines y with numbers for its last axes."""
  shape = (1,) * (y.ndim - each.ndim) + each.shape
  return combine(y, each.astype(y.dtype).reshape(shape))


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
      quantized: bool = False,
  ):
    """Args map the logical names of the axes to their sizes, in order."""
    into, out = tuple(inputs.values()), tuple(outputs.values())
    fan_in = math.prod(into)
    small = lambda axes: tuple(_SMALL_AXES.get(a, a) for a in axes)
    self.num_inputs = len(into)
    self.kernel = nnx.Param(
        _normal(rngs, into + out, fan_in), axes=(*inputs, *outputs)
    )
    if quantized:  # The kernel is int8; see quantization.py.
      self.kernel_scale = nnx.Param(
          jnp.ones(out, jnp.float32), axes=small(outputs)
      )
    if bias:
      self.bias = nnx.Param(jnp.zeros(out, jnp.float32), axes=(*outputs,))
    if rank:
      self.lora_a = nnx.Param(
          _normal(rngs, (*into, rank), fan_in), axes=(*small(inputs), 'rank')
      )
      self.lora_b = nnx.Param(
          jnp.zeros((rank, *out), jnp.float32), axes=('rank', *small(outputs))
      )

  def __call__(self, x: Array, lora_scale: float, flat: bool = True) -> Array:
    kernel = self.kernel[...].astype(x.dtype)
    y = _contract(x, kernel, self.num_inputs, flat)
    if hasattr(self, 'kernel_scale'):
      y = _beside(y, self.kernel_scale[...], jnp.multiply)
    if hasattr(self, 'bias'):
      y = _beside(y, self.bias[...], jnp.add)
    if hasattr(self, 'lora_a'):
      a, b = self.lora_a[...], self.lora_b[...]
      down = _contract(x.astype(a.dtype), a, self.num_inputs, flat)
      delta = _contract(down, b, 1, flat) * a.dtype.type(lora_scale)
      y = (y.astype(delta.dtype) + delta).astype(x.dtype)
    return remat.named(y, remat.PROJECTION)


class Block(nnx.Module):
  """One layer: attention, then a gated MLP, each on a normalised residual."""

  def __init__(
      self,
      config: config_lib.ModelConfig,
      *,
      rngs: nnx.Rngs,
      ranks: Mapping[str, int] = types.MappingProxyType({}),
      quantized: bool = False,
  ):
    """Makes a block.

    Args:
      config: The model.
      rngs: Of its random weights.
      ranks: Of the adapters, by projection; 0 or absent for none.
      quantized: Whether kernels are int8 with a step per output.
    """
    c = config
    embed, mlp = {'embed': c.embed_dim}, {'mlp': c.mlp_dim}
    heads = {'heads': c.num_heads, 'head_dim': c.head_dim}
    kv_heads = {'kv_heads': c.num_kv_heads, 'head_dim': c.head_dim}

    def make(name, inputs, outputs, bias=False):
      rank = ranks.get(name, 0)
      return Projection(
          inputs, outputs, bias=bias, rank=rank, rngs=rngs, quantized=quantized
      )

    norm = lambda: RMSNorm(c.embed_dim, 'embed', c.norm_eps)
    self.attn_norm = norm()
    self.q = make('q', embed, heads, c.qkv_bias)
    self.k = make('k', embed, kv_heads, c.qkv_bias)
    self.v = make('v', embed, kv_heads, c.qkv_bias)
    self.o = make('o', heads, embed)
    if c.qk_norm:
      self.q_norm = RMSNorm(c.head_dim, 'head_dim', c.norm_eps)
      self.k_norm = RMSNorm(c.head_dim, 'head_dim', c.norm_eps)
    self.mlp_norm = norm()
    self.gate = make('gate', embed, mlp)
    self.up = make('up', embed, mlp)
    self.down = make('down', mlp, embed)

  def __call__(
      self, x, rotate, attend, lora_scale: float, layout=rules.ANYWHERE
  ):
    """Returns the residual stream one layer on, and what `attend` keeps.

    Args:
      x: [B T D].
      rotate: Turns queries or keys [B T N H] by their positions.
      attend: (q, k, v) -> (attended values [B T N H], anything to keep).
      lora_scale: Factor on the adapters' part; not read without adapters.
      layout: Where activations live.
    """
    call = (lora_scale, not layout.splits_rows)
    stream = lambda x: layout(x, 'act_batch', 'act_time', 'act_embed')
    wide = lambda x: layout(x, 'act_batch', 'act_time', 'act_mlp')
    k, v = self.keys_values(x, rotate, lora_scale, layout)
    q = self.q(self.attn_norm(x), *call)
    if hasattr(self, 'q_norm'):
      q = self.q_norm(q)
    q = layout(q, 'act_batch', 'act_time', 'act_heads', 'head_dim')
    out, kept = attend(rotate(q), k, v)
    x = stream(x + self.o(out, *call))
    y = self.mlp_norm(x)
    y = wide(jax.nn.silu(self.gate(y, *call))) * wide(self.up(y, *call))
    return stream(x + self.down(y, *call)), kept

  def keys_values(self, x, rotate, lora_scale: float, layout=rules.ANYWHERE):
    """Returns rotated keys and values [B T K H]: all that a cache needs."""
    call = (lora_scale, not layout.splits_rows)
    y = self.attn_norm(x)
    k, v = self.k(y, *call), self.v(y, *call)
    if hasattr(self, 'k_norm'):
      k = self.k_norm(k)
    own = lambda x: layout(
        x, 'act_batch', 'act_time', 'act_kv_heads', 'head_dim'
    )
    return rotate(own(k)), own(v)
