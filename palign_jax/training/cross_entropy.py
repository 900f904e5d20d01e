"""Weighted cross-entropy that never holds the logits of all positions.

They exist for a chunk of every row at a time.  The gradient is taken with the
loss while a chunk's logits are there, and waits for its cotangent: none are
computed twice, as a backward pass of its own would have to.

Each device works on its own tokens and its part of the vocabulary.  What it
finds for the head is added up on it, in float32, and goes over the network
once, after the last chunk.
"""

import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib, rules


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How positions are taken.

  Attributes:
    model: Whose logits.
    layout: Where activations live.
    size: Positions of every row on a device whose logits exist at a time; 0
      for all.
  """

  model: config_lib.ModelConfig
  layout: rules.Layout
  size: int


def head(params: decoder.Params, config: config_lib.ModelConfig) -> Array:
  """Returns the weights that make logits: [V D] if tied, else [D V]."""
  if config.tied:
    return params['embed']['table']
  return params['lm_head']['kernel']


def row_sums(
    chunks: Chunks,
    head: Array,
    x: Float[Array, 'B T D'],
    goal: Int[Array, 'B T'],
    weights: Float[Array, 'B T'],
) -> Float[Array, ' B']:
  """Returns the sum over each row of weight times -log p(goal), in nats.

  Args:
    chunks: How it is computed.
    head: From `head`.
    x: The stream after the final norm.
    goal: The tokens to predict.
    weights: What each of them weighs.
  """
  return _run(chunks, (), head, x, goal, weights)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def total(
    chunks: Chunks,
    head: Array,
    x: Float[Array, 'B T D'],
    goal: Int[Array, 'B T'],
    weights: Float[Array, 'B T'],
) -> Float[Array, '']:
  """Returns the sum of `row_sums`, to be differentiated by head and x."""
  return jnp.sum(row_sums(chunks, head, x, goal, weights))


def _forward(chunks, *primals):
  by = {'h': primals[0], 'x': primals[1]}
  wanted = [name for name, primal in by.items() if primal.perturbed]
  values = [primal.value for primal in primals]
  sums, of_head, of_x = _run(chunks, wanted, *values)
  if of_head is not None:
    of_head = of_head.astype(values[0].dtype)
  return jnp.sum(sums), (of_head, of_x)


def _backward(chunks, gradients, cotangent):
  del chunks
  scale = lambda g: (cotangent * g.astype(jnp.float32)).astype(g.dtype)
  return *jax.tree.map(scale, gradients), None, None


total.defvjp(_forward, _backward, symbolic_zeros=True)


def _run(chunks, wanted, head, x, goal, weights):
  """Returns the sums of the rows, and the gradients of their sum.

  Args:
    chunks: How it is computed.
    wanted: What to differentiate by: 'h' for the head, 'x'; None is returned
      for what is not.
    head: The other arguments are as of `row_sums`.
    x: See there.
    goal: See there.
    weights: See there.
  """
  tied, mesh = chunks.model.tied, _mesh(chunks.layout.mesh, *x.shape[:2])
  # Gathered for all chunks at once, in the dtype of the products.
  axes = ('vocab', 'act_embed') if tied else ('act_embed', 'vocab')
  head = chunks.layout(head.astype(x.dtype), *axes)
  local = functools.partial(_local, chunks, wanted, mesh)
  if mesh is None:
    return local(head, x, goal, weights)
  order = (lambda *axes: axes) if tied else (lambda *axes: axes[::-1])
  whole, split = rules.spec(*order('vocab', None)), order('vocab', 'embed')
  tokens = (mesh_lib.TOKENS,) * 3
  return jax.shard_map(
      local,
      mesh=mesh,
      in_specs=(whole, *tokens),
      out_specs=(mesh_lib.ROWS, rules.spec(*split), mesh_lib.TOKENS),
      check_vma=False,
  )(head, x, goal, weights)


def _mesh(mesh: Mesh | None, num_rows: int, length: int) -> Mesh | None:
  """Returns the mesh if there is one that such rows split over."""
  if mesh is None or mesh.size == 1:
    return None
  fits = num_rows % mesh_lib.num_row_shards(mesh) == 0
  return mesh if fits and length % mesh_lib.num_parts(mesh) == 0 else None


def _local(chunks, wanted, mesh, head, x, goal, weights):
  """Does `_run` on one device, with its part of everything."""
  tied = chunks.model.tied
  over = functools.partial(_over, mesh)
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def body(sums, part):
    of_rows, of_head = sums
    x, goal, weights = part
    logits = product('btd,vd->btv' if tied else 'btd,dv->btv', x, head)
    nll, slope = _nll(logits, goal, over)
    of_rows += jnp.sum(weights * nll, axis=1)
    of_x, d = None, (weights[..., None] * slope).astype(x.dtype)
    if 'h' in wanted:
      of_head += product('btv,btd->vd' if tied else 'btv,btd->dv', d, x)
    if 'x' in wanted:
      of_x = product('btv,vd->btd' if tied else 'btv,dv->btd', d, head)
      of_x = over(lax.psum, 'act_vocab', of_x).astype(x.dtype)
    return (of_rows, of_head), of_x

  zeros = jnp.zeros(len(x), jnp.float32)
  of_head = jnp.zeros(head.shape, jnp.float32) if 'h' in wanted else None
  size = min(chunks.size or x.shape[1], x.shape[1])
  parts = [_split(a, size) for a in (x, goal, weights)]
  (of_rows, of_head), of_x = lax.scan(body, (zeros, of_head), parts)
  of_rows = over(lax.psum, 'act_time', of_rows)
  if of_head is not None:
    scatter = functools.partial(
        lax.psum_scatter, scatter_dimension=int(tied), tiled=True
    )
    of_head = over(lax.psum, 'data', over(scatter, 'embed', of_head))
    # Or what is added up, whole, waits until the layers' gradient is there.
    of_head, of_x = lax.optimization_barrier((of_head, of_x))
  if of_x is not None:
    of_x = jnp.moveaxis(of_x, 0, 1).reshape(len(x), -1, x.shape[2])
    of_x = of_x[:, : x.shape[1]]
  return of_rows, of_head, of_x


def _over(mesh: Mesh | None, collective, axis: str, x: Array | int):
  """Returns what a collective over an axis makes of x, or x on one device.

  Args:
    mesh: The devices.
    collective: (array, mesh axes) -> array.
    axis: Logical, or 'data', over which only rows are split.
    x: Of this device.
  """
  return collective(x, rules.RULES.get(axis, axis)) if mesh else x


def _nll(
    logits: Float[Array, 'B T V'], goal: Int[Array, 'B T'], over
) -> tuple[Float[Array, 'B T'], Float[Array, 'B T V']]:
  """Returns -log p(goal), and its gradient by these logits.

  Args:
    logits: Of the part of the vocabulary that is this device's.
    goal: Of all of it.
    over: See `_over`.
  """
  begin = over(lambda x, axes: x + lax.axis_index(axes), 'act_vocab', 0)
  ids = jnp.arange(logits.shape[-1], dtype=goal.dtype)
  # A comparison instead of a gather: it fuses.
  hit = goal[..., None] - begin * logits.shape[-1] == ids[None, None]
  top = over(lax.pmax, 'act_vocab', jnp.max(logits, axis=-1))
  mass = jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
  log_z = top + jnp.log(over(lax.psum, 'act_vocab', mass))
  chosen = jnp.sum(jnp.where(hit, logits, jnp.float32(0)), axis=-1)
  chosen = over(lax.psum, 'act_vocab', chosen)
  slope = jnp.exp(logits - log_z[..., None]) - hit.astype(jnp.float32)
  return log_z - chosen, slope


def _split(x: Array, size: int) -> Array:
  """Returns [B T ...] as [chunk B size ...], padded with zeros."""
  B, T, *rest = x.shape
  pad = [(0, 0), (0, -T % size), *([(0, 0)] * len(rest))]
  return jnp.moveaxis(jnp.pad(x, pad).reshape(B, -1, size, *rest), 1, 0)
