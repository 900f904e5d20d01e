"""A model of a few numbers, all different, in which every weight matters."""

import jax
import jax.numpy as jnp
import numpy as np

from palign_jax.models import config as config_lib, decoder

CONFIG = config_lib.ModelConfig(
    vocab_size=40,
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=20,
    norm_eps=1e-5,
    rope_theta=1e4,
    rope_scaling=config_lib.LinearScaling(2.0),
    qkv_bias=True,
    qk_norm=True,
    tied=False,
)


def weights(config):
  """Weights in which every parameter matters, norms and biases too.

  Those that two configs share are the same in both.
  """

  def draw(path, x):
    rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
    return jnp.asarray(rng.normal(0.2, 0.5, x.shape), x.dtype)

  shapes = decoder.abstract(config, jnp.float32)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def tokens(*shape):
  return jnp.asarray(np.random.default_rng(3).integers(0, 40, shape), jnp.int32)


def places(tokens):
  return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
