"""Weighted next-token cross-entropy that never holds all logits at once.

The gradient is left to `jax.checkpoint`, not written by hand: a test checks it
against the plain loss under a cotangent that is not 1.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib, rules

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the loss is computed; none of it changes what it is.

  Attributes:
    dtype: Of the model's computation; logits and loss are float32.
    remat: What of a layer the backward pass computes again, see
      models/remat.py.
    chunk_size: Positions of every row whose logits exist at a time; 0 for all
      (fastest while they are few).  If rows are split over devices, so many
      on each.
    lora_scale: alpha / rank of the adapters; not read without adapters.
    attention: Who computes it.
  """

  dtype: str
  remat: str
  chunk_size: int
  lora_scale: float
  attention: kernels.Backend = kernels.XLA

  @property
  def layout(self) -> rules.Layout:
    """Where activations live: on the devices that compute attention."""
    return rules.Layout(self.attention.mesh)


def targets(batch: Batch) -> tuple[Int[Array, '*B T'], Float[Array, '*B T']]:
  """Returns the token each position must predict, and what that weighs.

  Nothing is predicted across the seam of two examples, nor by the last
  position of a row.
  """
  left = lambda x: jnp.concatenate(
      [x[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1
  )
  segments = batch['segments']
  inside = (left(segments) == segments) & (segments > 0)
  weights = jnp.where(inside, left(batch['weights']), jnp.float32(0))
  return left(batch['tokens']), weights


def weighted_sum(
    params: decoder.Params,
    model_config: config_lib.ModelConfig,
    batch: Batch,
    config: LossConfig,
) -> Float[Array, '']:
  """Returns the sum over the batch of weight times -log p(target), in nats.

  Args:
    params: Weights, with adapters joined in if there are any.
    model_config: The model.
    batch: As `packing.rows` makes it.
    config: How to compute it.
  """
  x = decoder.hidden(
      params,
      model_config,
      batch['tokens'],
      batch['positions'],
      batch['segments'],
      dtype=jnp.dtype(config.dtype),
      lora_scale=config.lora_scale,
      remat=config.remat,
      backend=config.attention,
  )
  return jnp.sum(row_sums(params, model_config, x, batch, config))


def row_sums(
    params: decoder.Params,
    model_config: config_lib.ModelConfig,
    x: Float[Array, 'B T D'],
    batch: Batch,
    config: LossConfig,
) -> Float[Array, ' B']:
  """Returns the part of each row in `weighted_sum`.

  Args:
    params: Weights.
    model_config: The model.
    x: The stream after the final norm.
    batch: As `packing.rows` makes it.
    config: How to compute it.
  """
  goal, weights = targets(batch)
  layout = config.layout
  ends = _gathered(params, model_config, layout)

  def chunk_sum(ends: Any, x_BTD, goal_BT, weights_BT):
    x_BTD = layout(x_BTD, 'act_batch', 'act_time', 'act_embed')
    logits_BTV = decoder.logits(ends, model_config, x_BTD)
    logits_BTV = layout(logits_BTV, 'act_batch', 'act_time', 'act_vocab')
    return jnp.sum(weights_BT * _nll(logits_BTV, goal_BT), axis=1)

  parts, size = mesh_lib.num_parts(layout.mesh), config.chunk_size
  if not size or size * parts >= goal.shape[1]:
    return chunk_sum(ends, x, goal, weights)
  chunks = [_chunks(a, size, parts) for a in (x, goal, weights)]

  def body(total, chunk):
    return total + jax.checkpoint(chunk_sum)(ends, *chunk), None

  zeros = jnp.zeros(len(goal), jnp.float32)
  return jax.lax.scan(body, zeros, chunks)[0]


def _gathered(
    params: decoder.Params,
    model_config: config_lib.ModelConfig,
    layout: rules.Layout,
) -> decoder.Params:
  """Returns what `decoder.logits` reads, its channels on every device.

  Gathered once for all chunks: in their loop it would be gathered for each.
  """
  if model_config.tied:
    table = layout(params['embed']['table'], 'vocab', 'act_embed')
    return {'embed': {'table': table}}
  kernel = layout(params['lm_head']['kernel'], 'act_embed', 'vocab')
  return {'lm_head': {'kernel': kernel}}


def _nll(
    logits: Float[Array, 'B T V'], goal: Int[Array, 'B T']
) -> Float[Array, 'B T']:
  # A comparison instead of a gather: it fuses, and V may be split over devices.
  ids = jnp.arange(logits.shape[-1], dtype=goal.dtype)
  hit = goal[..., None] == ids[None, None]
  chosen = jnp.sum(jnp.where(hit, logits, jnp.float32(0)), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def _chunks(x: Array, size: int, parts: int) -> Array:
  """Returns [B T ...] as [chunk B parts*size ...], padded with zeros.

  A chunk has `size` positions of each of the parts that T is split into, so
  that all devices work on it.
  """
  B, T, *rest = x.shape
  x = x.reshape(B, parts, T // parts, *rest)
  pad = [(0, 0)] * x.ndim
  pad[2] = (0, -x.shape[2] % size)
  x = jnp.pad(x, pad)
  x = jnp.moveaxis(x.reshape(B, parts, -1, size, *rest), 2, 0)
  return x.reshape(-1, B, parts * size, *rest)
