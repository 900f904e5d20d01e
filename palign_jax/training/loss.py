"""The loss of packed rows: what is to be predicted, and what it weighs."""

from collections.abc import Mapping
import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import rules
from palign_jax.training import cross_entropy

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the loss is computed; none of it changes what it is.

  Attributes:
    dtype: Of the model's computation; logits and loss are float32.
    remat: What of a layer the backward pass computes again, see
      models/remat.py.
    chunk_size: Positions of every row on a device whose logits exist at a
      time; 0 for all (fastest while they are few).
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
  chunks, head = _chunks(params, model_config, config)
  return cross_entropy.total(chunks, head, x, *targets(batch))


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
  chunks, head = _chunks(params, model_config, config)
  return cross_entropy.row_sums(chunks, head, x, *targets(batch))


def _chunks(params, model_config, config):
  head = cross_entropy.head(params, model_config)
  size = config.chunk_size
  return cross_entropy.Chunks(model_config, config.layout, size), head
