"""A model small enough to compile in seconds, and examples for it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from palign_jax.models import config as config_lib, decoder, kernels, lora
from palign_jax.training import examples, loss, optim, packing, step

MODEL = config_lib.ModelConfig(
    vocab_size=40,
    num_layers=2,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=48,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    tied=True,
)
LOSS = loss.LossConfig(
    dtype='float32', remat='none', chunk_size=0, lora_scale=2.0
)
OPTIM = optim.OptimConfig(
    name='adamw',
    peak_lr=1e-2,
    warmup_frac=0.1,
    decay='cosine',
    final_lr_frac=0.1,
    weight_decay=0.1,
    b1=0.9,
    b2=0.95,
    eps=1e-3,  # Large: Adam would otherwise blow up rounding.
    clip_norm=1.0,
    muon_beta=0.95,
)


def params(model=MODEL):
  """Random weights, drawn by numpy: JAX's own draws take long to compile."""
  rng = np.random.default_rng(0)
  shapes = decoder.abstract(model, jnp.dtype('float32'))
  draw = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape).astype(np.float32))
  return jax.tree.map(draw, shapes)


def adapters(rank: int):
  """A drawn by numpy, B zero, as `lora.init` makes them."""
  shapes = jax.eval_shape(lambda: lora.init(MODEL, rank, jax.random.key(0)))
  rng = np.random.default_rng(1)

  def draw(path, x):
    scale = 0.2 if path[-1].key == 'lora_a' else 0.0
    return jnp.asarray(rng.normal(0, scale, x.shape).astype(np.float32))

  return jax.tree_util.tree_map_with_path(draw, shapes)


def example(number: int, size: int) -> examples.Example:
  """Random tokens; about a third have weight 0, the others up to 2."""
  rng = np.random.default_rng(number)
  tokens = rng.integers(1, MODEL.vocab_size, size).astype(np.int32)
  weights = np.maximum(rng.uniform(-1, 2, size), 0).astype(np.float32)
  return examples.Example(f'e{number}', tokens, weights)


def batch(*rows, max_tokens=32) -> packing.Batch:
  return packing.rows(rows, max_tokens)


def stepper(
    state,
    frozen,
    *,
    optim_config=OPTIM,
    loss_config=LOSS,
    num_microbatches=1,
    num_steps=10,
    mesh=None,
):
  rate = optim.schedule(optim_config, num_steps)
  optimizer = optim.make(optim_config, rate)
  where = None
  if mesh is not None:
    attention = kernels.Backend('auto', mesh)
    loss_config = dataclasses.replace(loss_config, attention=attention)
    where = jax.tree.map(lambda x: x.sharding, state.params)
  pure = step.make(
      MODEL, loss_config, optimizer, rate, optim_config.clip_norm, where
  )
  return step.compile(
      pure, step.StepConfig(num_microbatches), frozen, state, mesh
  )


def start(weights, optim_config=OPTIM, num_steps=10):
  rate = optim.schedule(optim_config, num_steps)
  return step.init(weights, optim.make(optim_config, rate))


def devices(num: int):
  return jax.devices()[:num]
