"""One decoder for every family: a family is numbers, not a file.

The modules of `layers.py` are split once into plain pytrees.  Everything here
is a function of such a tree, so `jax.jit`, `lax.scan`, `jax.checkpoint` and
shardings apply as to any other.

`params['layers']` is stacked on a leading axis L and scanned over; `unstack`
turns it into a tuple of layers, which the functions below unroll.  Caches want
the second form: a scan would copy each layer's cache in and out.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from palign_jax.models import (
    config as config_lib,
    kernels,
    layers,
    remat as remat_lib,
    rope,
)
from palign_jax.parallel import rules

Params = dict[str, Any]
# Per layer, keys [B K H S] and values [B K S H].
Cache = tuple[tuple[Array, Array], ...]
PROJECTIONS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')


class _Ends(nnx.Module):
  """What stands before and after the layers."""

  def __init__(self, config: config_lib.ModelConfig, *, rngs: nnx.Rngs):
    c = config
    table = jax.random.normal(
        rngs.params(), (c.vocab_size, c.embed_dim), jnp.float32
    )
    self.embed = nnx.Dict(
        table=nnx.Param(table * jnp.float32(0.02), axes=('vocab', 'embed'))
    )
    self.final_norm = layers.RMSNorm(c.embed_dim, 'embed', c.norm_eps)
    if not c.tied:
      self.lm_head = layers.Projection(
          {'embed': c.embed_dim},
          {'vocab': c.vocab_size},
          bias=False,
          rank=0,
          rngs=rngs,
      )


def _split(module: nnx.Module) -> Params:
  return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def init(
    config: config_lib.ModelConfig, key: jax.Array, dtype: DTypeLike
) -> Params:
  """Returns random weights; jit it with out_shardings to make them in place."""
  key, ends_key = jax.random.split(key)

  def block(key):
    return _split(layers.Block(config, rngs=nnx.Rngs(key)))

  ends = _split(_Ends(config, rngs=nnx.Rngs(ends_key)))
  stack = jax.vmap(block)(jax.random.split(key, config.num_layers))
  return jax.tree.map(lambda x: x.astype(dtype), {**ends, 'layers': stack})


def abstract(config: config_lib.ModelConfig, dtype: DTypeLike) -> Params:
  """Returns the shapes and dtypes of the weights, without making them."""
  return jax.eval_shape(lambda: init(config, jax.random.key(0), dtype))


@functools.lru_cache(maxsize=64)
def _graph(
    config: config_lib.ModelConfig,
    ranks: tuple[tuple[str, int], ...],
    quantized: bool,
):
  """Returns a block's structure, and the logical axes of its parameters."""
  block = nnx.eval_shape(
      lambda: layers.Block(
          config, rngs=nnx.Rngs(0), ranks=dict(ranks), quantized=quantized
      )
  )
  graph, state = nnx.split(block)
  return graph, state, _axes(state)


def _axes(state) -> Params:
  names = {p: v.get_metadata('axes') for p, v in nnx.to_flat_state(state)}
  return nnx.traversals.unflatten_mapping(names)


def logical_axes(
    config: config_lib.ModelConfig, rank: int = 0, quantized: bool = False
) -> Params:
  """Returns the names of the axes of each parameter, as a tree of tuples.

  Args:
    config: The model.
    rank: With `rank` > 0 the adapters' parameters are among them.
    quantized: Whether those of `quantization.quantize` are.
  """
  ends = nnx.eval_shape(lambda: _Ends(config, rngs=nnx.Rngs(0)))
  stack = jax.tree.map(
      lambda names: ('layers', *names),
      _graph(config, tuple((name, rank) for name in PROJECTIONS), quantized)[2],
      is_leaf=lambda x: isinstance(x, tuple),
  )
  return {**_axes(nnx.state(ends, nnx.Param)), 'layers': stack}


@functools.lru_cache(maxsize=64)
def _splitter(where: NamedSharding | None):
  """Returns what splits a stack; kept, as what it compiles goes with it."""
  return jax.jit(tuple, out_shardings=where)


def unstack(params: Params, *, consume: bool = False) -> Params:
  """Returns the same weights with `layers` as a tuple, one tree per layer.

  Args:
    params: Weights; if they are unstacked they are returned as they are.
    consume: Deletes each stack as soon as it is split, so that there are never
      two copies of all weights.

  Returns:
    The weights, each where its stack lay.
  """
  stack = params['layers']
  if isinstance(stack, tuple):
    return params

  def split(x):
    where = getattr(x, 'sharding', None)
    if isinstance(where, NamedSharding):
      where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    else:
      where = None
    parts = _splitter(where)(x)
    if consume:
      jax.block_until_ready(parts)
      x.delete()
    return parts

  leaves, shape = jax.tree.flatten(stack)
  each = zip(*map(split, leaves), strict=True)
  return {**params, 'layers': tuple(shape.unflatten(part) for part in each)}


def _block(config: config_lib.ModelConfig, layer: Params) -> layers.Block:
  rank = lambda name: layer[name]['lora_a'].shape[-1]
  adapted = [name for name in PROJECTIONS if 'lora_a' in layer[name]]
  ranks = tuple((name, rank(name)) for name in adapted)
  graph, state, _ = _graph(config, ranks, 'kernel_scale' in layer['q'])
  state = jax.tree.map(lambda v: v, state)
  nnx.replace_by_pure_dict(state, layer)
  return nnx.merge(graph, state)


def _rotation(config: config_lib.ModelConfig, positions: Int[Array, 'B T']):
  """Returns what turns queries and keys [B T N H] by their positions."""
  cos, sin = rope.angles(
      positions, config.head_dim, config.rope_theta, config.rope_scaling
  )
  return lambda y: rope.rotate(y, cos, sin)


def _run(
    params: Params,
    config: config_lib.ModelConfig,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    attend: Callable,
    *,
    lora_scale: float,
    remat: str = 'none',
    layout: rules.Layout = rules.ANYWHERE,
) -> tuple[Float[Array, 'B T D'], Any]:
  """Runs all layers and the final norm.

  Args:
    params: Weights, stacked or unstacked.
    config: The model.
    x: Embedded tokens.
    positions: Of each token in its own sequence.
    attend: (layer's number, q, k, v) -> (attended values, what to keep).
    lora_scale: Factor on the adapters' part.
    remat: What the backward pass computes again; see remat.py.
    layout: Where activations live.

  Returns:
    The normalised stream, and what each layer kept: stacked, or as a tuple.
  """
  rotate = _rotation(config, positions)

  def step(x, numbered):
    i, layer = numbered
    return _block(config, layer)(
        x, rotate, lambda *qkv: attend(i, *qkv), lora_scale, layout
    )

  stack = params['layers']
  step = remat_lib.wrap(step, remat, in_scan=not isinstance(stack, tuple))
  if isinstance(stack, tuple):
    kept = []
    for numbered in enumerate(stack):
      x, keep = step(x, numbered)
      kept.append(keep)
    kept = tuple(kept)
  else:
    x, kept = jax.lax.scan(step, x, (jnp.arange(config.num_layers), stack))
  norm = nnx.eval_shape(
      lambda: layers.RMSNorm(config.embed_dim, 'embed', config.norm_eps)
  )
  norm.scale.set_value(params['final_norm']['scale'])
  return norm(x), kept


def _embed(params: Params, tokens: Int[Array, '*B'], dtype: DTypeLike):
  return params['embed']['table'][tokens].astype(dtype)


def hidden(
    params: Params,
    config: config_lib.ModelConfig,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segments: Int[Array, 'B T'] | None,
    *,
    dtype: DTypeLike,
    lora_scale: float = 0.0,
    remat: str = 'none',
    backend: kernels.Backend = kernels.XLA,
) -> Float[Array, 'B T D']:
  """Returns the stream after the final norm: `logits` of it are the model's.

  Args:
    params: Weights; with adapters if `lora.join` put them there.
    config: The model.
    tokens: Ids.  Padding may hold any id below V.
    positions: Place of each token in its own sequence, in tokens from 0.
    segments: Which sequence of its row each token belongs to, for packed rows;
      None if each row is one sequence, padded on the right.
    dtype: Of the computation, and of the result.
    lora_scale: alpha / rank of the adapters.
    remat: What the backward pass computes again; see remat.py.
    backend: Who computes attention; if it knows the devices, rows, tokens and
      channels lie on them as the table of parallel/rules.py says.
  """
  layout = rules.Layout(backend.mesh)

  def attend(_, q, k, v):
    return kernels.causal(backend, q, k, v, segments), None

  x = _embed(params, tokens, dtype)
  x, _ = _run(
      params,
      config,
      layout(x, 'act_batch', 'act_time', 'act_embed'),
      positions,
      attend,
      lora_scale=lora_scale,
      remat=remat,
      layout=layout,
  )
  return x


def logits(
    params: Params, config: config_lib.ModelConfig, x: Float[Array, '*B D']
) -> Float[Array, '*B V']:
  """Returns the logits, float32 whatever the dtype of `x`."""
  if config.tied:
    head, subscript = params['embed']['table'], '...D,VD->...V'
  else:
    head, subscript = params['lm_head']['kernel'], '...D,DV->...V'
  return jnp.einsum(
      subscript, x, head.astype(x.dtype), preferred_element_type=jnp.float32
  )


def extend(
    params: Params,
    config: config_lib.ModelConfig,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    attend: Callable,
    *,
    dtype: DTypeLike,
    lora_scale: float = 0.0,
    layout: rules.Layout = rules.ANYWHERE,
) -> tuple[Float[Array, 'B T D'], Any]:
  """Reads tokens whose attention, and what becomes of it, is the caller's.

  Args:
    params: Weights.
    config: The model.
    tokens: Ids.
    positions: Of each in its own sequence.
    attend: (layer's number, q, k, v) -> (attended values, what to keep).
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.
    layout: Where activations live.

  Returns:
    The stream after the final norm, and what each layer kept.
  """
  x = _embed(params, tokens, dtype)
  rest = dict(lora_scale=lora_scale, layout=layout)
  return _run(params, config, x, positions, attend, **rest)


def new_cache(
    config: config_lib.ModelConfig,
    num_rows: int,
    capacity: int,
    dtype: DTypeLike,
) -> Cache:
  """Returns an empty cache for `num_rows` rows of `capacity` tokens."""
  shape = num_rows, config.num_kv_heads
  keys = jnp.zeros((*shape, config.head_dim, capacity), dtype)
  values = jnp.zeros((*shape, capacity, config.head_dim), dtype)
  return ((keys, values),) * config.num_layers


# How a trunk's arrays lie on a mesh: rows, then heads.
_ROWS = rules.spec('act_batch')
CACHE = rules.spec('act_batch', 'act_kv_heads')


def _store(mesh: Mesh | None, layer, k, v, rows, begins):
  """Returns a layer's cache with new tokens [B T K H] in its rows."""

  def put(keys, values, k, v, rows, begins):
    k = k.transpose(0, 2, 3, 1).astype(keys.dtype)
    v = v.swapaxes(1, 2).astype(values.dtype)
    for b in range(len(k)):
      row, begin, zero = rows[b], begins[b], jnp.int32(0)
      put = jax.lax.dynamic_update_slice
      keys = put(keys, k[b : b + 1], (row, zero, zero, begin))
      values = put(values, v[b : b + 1], (row, zero, begin, zero))
    return keys, values

  args = (*layer, k, v, rows, begins)
  if mesh is None or mesh.size == 1:
    return put(*args)
  own = rules.spec('act_batch', None, 'act_kv_heads')
  return jax.shard_map(
      put,
      mesh=mesh,
      in_specs=(CACHE, CACHE, own, own, _ROWS, _ROWS),
      out_specs=(CACHE, CACHE),
      check_vma=False,
  )(*args)


def grow(
    params: Params,
    config: config_lib.ModelConfig,
    tokens: Int[Array, 'B T'],
    rows: Int[Array, ' B'],
    begins: Int[Array, ' B'],
    cache: Cache,
    *,
    backend: kernels.Backend,
    dtype: DTypeLike,
    lora_scale: float = 0.0,
    seen: Int[Array, ' B'] | None = None,
) -> Cache:
  """Reads the next T tokens of some of the trunks of a cache.

  The last layer computes keys and values only: nothing else of it is read.

  Args:
    params: Weights, unstacked.
    config: The model.
    tokens: Of B trunks.
    rows: Which rows of the cache they are; on a mesh, of the device's own.
    begins: How many tokens each has there already.
    cache: Donated: do not use it again.
    backend: Who computes attention; on its mesh rows of the cache lie over
      data and fsdp, heads over tensor.
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.
    seen: How many tokens of its trunk each attends to; None for `begins`.
  """
  B, T = tokens.shape
  seen = begins if seen is None else seen
  positions = begins[:, None] + jnp.arange(T, dtype=jnp.int32)[None]
  fork = lambda x: x[:, None]

  def attend(i, q, k, v):
    # In this order the cache is changed in place; read first, it is copied.
    trunk = _store(backend.mesh, cache[i], k, v, rows, begins)
    out = kernels.beside(
        backend, *map(fork, (q, k, v)), *trunk, rows, fork(seen)
    )
    return out[:, 0], trunk

  *layers_, last = params['layers']
  x = _embed(params, tokens, dtype)
  rotate = _rotation(config, positions)
  kept = []
  for i, layer in enumerate(layers_):
    block = _block(config, layer)
    x, keep = block(x, rotate, functools.partial(attend, i), lora_scale)
    kept.append(keep)
  k, v = _block(config, last).keys_values(x, rotate, lora_scale)
  return *kept, _store(backend.mesh, cache[-1], k, v, rows, begins)


def forks(
    params: Params,
    config: config_lib.ModelConfig,
    tokens: Int[Array, 'B M T'],
    lengths: Int[Array, 'B M'],
    rows: Int[Array, ' B'],
    seen: Int[Array, 'B M'],
    cache: Cache,
    *,
    backend: kernels.Backend,
    dtype: DTypeLike,
    lora_scale: float = 0.0,
) -> Float[Array, 'B M D']:
  """Reads texts that leave a cached trunk, each as if it were alone.

  Args:
    params: Weights, unstacked.
    config: The model.
    tokens: M texts per row, padded on the right.
    lengths: Of each, in tokens, at least 1.
    rows: Which rows of the cache they leave; on a mesh, of the device's own.
    seen: After how many tokens of the trunk each leaves it.
    cache: As `grow` made it.
    backend: See `grow`.
    dtype: Of the computation.
    lora_scale: alpha / rank of the adapters.

  Returns:
    The stream after the final norm at each text's last token.
  """
  B, M, T = tokens.shape
  place = jnp.arange(T, dtype=jnp.int32)
  positions = (seen[:, :, None] + place[None, None]).reshape(B, M * T)
  apart = lambda x: x.reshape(B, M, T, *x.shape[2:])

  def attend(i, q, k, v):
    out = kernels.beside(backend, *map(apart, (q, k, v)), *cache[i], rows, seen)
    return out.reshape(B, M * T, *out.shape[3:]), None

  x = _embed(params, tokens.reshape(B, M * T), dtype)
  x, _ = _run(params, config, x, positions, attend, lora_scale=lora_scale)
  last = (lengths - 1)[:, :, None, None]
  return jnp.take_along_axis(apart(x), last, axis=2)[:, :, 0]


def margins(
    params: Params,
    config: config_lib.ModelConfig,
    x: Float[Array, '*B D'],
    pairs: Int[Array, '*B 2'],
) -> Float[Array, '*B']:
  """Returns log p(first) - log p(second) of two next tokens, float32, in nats.

  What makes probabilities sum to one cancels: of all logits two are computed.
  """
  if config.tied:
    heads = params['embed']['table'][pairs]
  else:
    heads = jnp.moveaxis(params['lm_head']['kernel'][:, pairs], 0, -1)
  both = jnp.einsum(
      '...D,...iD->...i',
      x,
      heads.astype(x.dtype),
      preferred_element_type=jnp.float32,
  )
  return both[..., 0] - both[..., 1]
