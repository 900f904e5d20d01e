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

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the loss is computed; none of it changes what it is.

  Attributes:
    dtype: Of the model's computation; logits and loss are float32.
    remat: 'none', or 'full' to compute each layer again in the backward pass.
    chunk_size: Positions of every row whose logits exist at a time; 0 for all
      (fastest while they are few).
    lora_scale: alpha / rank of the adapters; not read without adapters.
    attention: Who computes it.
  """

  dtype: str
  remat: decoder.Remat
  chunk_size: int
  lora_scale: float
  attention: kernels.Backend = kernels.XLA


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
  goal, weights = targets(batch)
  ends = {k: v for k, v in params.items() if k != 'layers'}

  def chunk_sum(ends: Any, x_BTD, goal_BT, weights_BT):
    logits_BTV = decoder.logits(ends, model_config, x_BTD)
    return jnp.sum(weights_BT * _nll(logits_BTV, goal_BT))

  T, size = goal.shape[1], config.chunk_size
  if not size or size >= T:
    return chunk_sum(ends, x, goal, weights)
  chunks = [_chunks(a, size) for a in (x, goal, weights)]

  def body(total, chunk):
    return total + jax.checkpoint(chunk_sum)(ends, *chunk), None

  total, _ = jax.lax.scan(body, jnp.float32(0), chunks)
  return total


def _nll(
    logits: Float[Array, 'B T V'], goal: Int[Array, 'B T']
) -> Float[Array, 'B T']:
  # A comparison instead of a gather: it fuses, and V may be split over devices.
  ids = jnp.arange(logits.shape[-1], dtype=goal.dtype)
  hit = goal[..., None] == ids[None, None]
  chosen = jnp.sum(jnp.where(hit, logits, jnp.float32(0)), axis=-1)
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def _chunks(x: Array, size: int) -> Array:
  """Returns [B T ...] as [chunk B size ...], T padded with zeros."""
  pad = [(0, 0)] * x.ndim
  pad[1] = (0, -x.shape[1] % size)
  x = jnp.pad(x, pad)
  x = x.reshape(x.shape[0], -1, size, *x.shape[2:])
  return jnp.moveaxis(x, 1, 0)
