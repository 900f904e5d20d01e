"""Weighted cross-entropy that never holds the logits of all positions.

They exist for a chunk of every row at a time.  The gradient is taken with the
loss while a chunk's logits are there, and waits for its cotangent; nothing is
computed twice.  What autodiff makes of one chunk is used as it is: the only
rule of our own is that the parts are added up, in float32, at once.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib, rules


@dataclasses.dataclass(frozen=True)
class Chunks:
  """How positions are taken.

  Attributes:
    model: Whose logits.
    layout: Where activations live.
    size: Positions of every row whose logits exist at a time, on each of the
      devices that rows are split over; 0 for all.
  """

  model: config_lib.ModelConfig
  layout: rules.Layout
  size: int

  def gathered(self, head: Array, dtype: jnp.dtype) -> Array:
    """Returns the head as products want it, its channels on every device.

    Once for all chunks: in their loop it would be gathered for each.
    """
    axes = ('vocab', 'act_embed') if self.model.tied else ('act_embed', 'vocab')
    return self.layout(head.astype(dtype), *axes)

  def scattered(self, grad: Array) -> Array:
    """Returns the gradient of the head where the head lies."""
    axes = ('vocab', 'embed') if self.model.tied else ('embed', 'vocab')
    return self.layout(grad, *axes)

  def split(self, *arrays: Array) -> tuple[Array, ...] | None:
    """Returns arrays [B T ...] as [chunk B t ...], None if they are one.

    They are padded with zeros.  A chunk has `size` positions of each of the
    parts that T is split into, so that all devices work on it.
    """
    parts = mesh_lib.num_parts(self.layout.mesh)
    if not 0 < self.size * parts < arrays[0].shape[1]:
      return None

    def one(x):
      B, T, *rest = x.shape
      x = x.reshape(B, parts, T // parts, *rest)
      pad = [(0, 0)] * x.ndim
      pad[2] = (0, -x.shape[2] % self.size)
      x = jnp.pad(x, pad).reshape(B, parts, -1, self.size, *rest)
      return jnp.moveaxis(x, 2, 0).reshape(-1, B, parts * self.size, *rest)

    return tuple(map(one, arrays))

  def joined(self, x: Array, like: Array) -> Array:
    """Returns what `split` made of an array like this one."""
    B, T, *rest = like.shape
    parts = mesh_lib.num_parts(self.layout.mesh)
    x = x.reshape(-1, B, parts, self.size, *rest)
    x = jnp.moveaxis(x, 0, 2).reshape(B, parts, -1, *rest)
    return x[:, :, : T // parts].reshape(like.shape)


def head(params: decoder.Params, config: config_lib.ModelConfig) -> Array:
  """Returns the weights that make logits: [V D] if they are tied, else [D V]."""
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
  head = chunks.gathered(head, x.dtype)
  parts = chunks.split(x, goal, weights)
  if parts is None:
    return _sums(chunks, head, x, goal, weights)
  add = lambda total, part: (total + _sums(chunks, head, *part), None)
  return jax.lax.scan(add, jnp.zeros(len(x), jnp.float32), parts)[0]


def total(
    chunks: Chunks,
    head: Array,
    x: Float[Array, 'B T D'],
    goal: Int[Array, 'B T'],
    weights: Float[Array, 'B T'],
) -> Float[Array, '']:
  """Returns the sum of `row_sums`, to be differentiated by head and x."""
  if chunks.split(x) is None:
    return jnp.sum(row_sums(chunks, head, x, goal, weights))
  return _total(chunks, head, x, goal, weights)


def _sums(chunks, head, x, goal, weights) -> Float[Array, ' B']:
  layout, tied = chunks.layout, chunks.model.tied
  params = {'embed': {'table': head}} if tied else {'lm_head': {'kernel': head}}
  x = layout(x, 'act_batch', 'act_time', 'act_embed')
  logits = decoder.logits(params, chunks.model, x)
  logits = layout(logits, 'act_batch', 'act_time', 'act_vocab')
  return jnp.sum(weights * _nll(logits, goal), axis=1)


def _nll(
    logits: Float[Array, 'B T V'], goal: Int[Array, 'B T']
) -> Float[Array, 'B T']:
  # A comparison instead of a gather: it fuses, and V may be split over devices.
  ids = jnp.arange(logits.shape[-1], dtype=goal.dtype)
  hit = goal[..., None] == ids[None, None]
  chosen = jnp.sum(jnp.where(hit, logits, jnp.float32(0)), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - chosen


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(chunks, head, x, goal, weights):
  return jnp.sum(row_sums(chunks, head, x, goal, weights))


def _forward(chunks, *primals):
  """Returns the total, and its gradients by x and, unless frozen, the head."""
  is_trained = primals[0].perturbed
  head, x, goal, weights = (primal.value for primal in primals)
  whole = chunks.gathered(head, x.dtype)
  by = (0, 1) if is_trained else (1,)

  def body(sums, part):
    add = lambda head, x: jnp.sum(_sums(chunks, head, x, *part[1:]))
    value, (*of_head, of_x) = jax.value_and_grad(add, by)(whole, part[0])
    of_head = [g.astype(jnp.float32) for g in of_head]
    return jax.tree.map(jnp.add, sums, (value, of_head)), of_x

  zeros = [jnp.zeros(head.shape, jnp.float32)] * is_trained
  (value, of_head), of_x = jax.lax.scan(
      body, (jnp.float32(0), zeros), chunks.split(x, goal, weights)
  )
  of_head = [chunks.scattered(g).astype(head.dtype) for g in of_head]
  return value, (of_head, chunks.joined(of_x, x))


def _backward(chunks, gradients, cotangent):
  del chunks
  of_head, of_x = jax.tree.map(
      lambda g: cotangent.astype(g.dtype) * g, gradients
  )
  return of_head[0] if of_head else None, of_x, None, None


_total.defvjp(_forward, _backward, symbolic_zeros=True)
