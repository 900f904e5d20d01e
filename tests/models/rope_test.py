"""RoPE against rotations by hand, against transformers, and far out."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from palign_jax.checkpoints import hf_rope
from palign_jax.models import config as config_lib, rope

LINEAR = config_lib.LinearScaling(3.0)
LLAMA3 = config_lib.Llama3Scaling(8.0, 1.0, 4.0, 8192)
YARN = config_lib.YarnScaling(4.0, 32768, 32.0, 1.0, 0.1 * math.log(4) + 1)
# head_dim, theta, scaling: as in Llama 2 and 3.1 and Qwen2.5, and odd ones.
CASES = {
    'llama2': (128, 1e4, None),
    'llama3.1': (128, 5e5, LLAMA3),
    'llama3.2': (64, 5e5, dataclasses.replace(LLAMA3, factor=32.0)),
    'llama3 short': (16, 1e4, config_lib.Llama3Scaling(4.0, 2.0, 6.0, 50)),
    'qwen2.5': (128, 1e6, YARN),
    'yarn narrow': (14, 2e4, config_lib.YarnScaling(2.5, 512, 24.0, 2.0, 1.3)),
    'yarn ends': (8, 1e4, config_lib.YarnScaling(8.0, 9, 4.0, 1.2, 1.0)),
    'yarn outside': (8, 1e4, config_lib.YarnScaling(8.0, 5, 32.0, 1.0, 1.1)),
    'linear': (10, 3e4, LINEAR),
}


def rotate(x, position, theta=1e4):
  positions = jnp.array([[position]], jnp.int32)
  cos, sin = rope.angles(positions, x.shape[-1], theta, None)
  return rope.rotate(x, cos, sin)


@pytest.mark.parametrize('name', CASES)
def test_angles_are_those_of_transformers(name):
  head_dim, theta, scaling = CASES[name]
  config = transformers.LlamaConfig(
      hidden_size=2 * head_dim,
      num_attention_heads=2,
      head_dim=head_dim,
      max_position_embeddings=64,
      **hf_rope.write(theta, scaling),
  )
  positions = np.array([[0, 1, 7, 100, 300]])
  cos, sin = modeling_llama.LlamaRotaryEmbedding(config)(
      torch.zeros(1), torch.tensor(positions)
  )
  got = rope.angles(jnp.asarray(positions, jnp.int32), head_dim, theta, scaling)
  for ours, theirs in zip(got, (cos, sin), strict=True):
    twice = np.concatenate([ours, ours], axis=-1)
    np.testing.assert_allclose(twice, theirs, rtol=0, atol=5e-5)


def scalings():
  """Pairs of scalings that differ in one number."""
  for old in (LINEAR, LLAMA3, YARN):
    for field in dataclasses.fields(old):
      changed = getattr(old, field.name) * 2
      new = dataclasses.replace(old, **{field.name: changed})
      yield pytest.param(old, new, id=f'{type(old).__name__}.{field.name}')


@pytest.mark.parametrize('old, new', list(scalings()))
def test_every_number_of_a_scaling_is_used(old, new):
  def cos(scaling):
    positions = jnp.array([[999]], jnp.int32)
    return np.asarray(rope.angles(positions, 128, 1e6, scaling)[0])

  assert np.abs(cos(old) - cos(new)).max() > 1e-3


def test_matches_rotations_by_hand():
  # 4 channels at position 3: (0, 2) turn by 3 rad and (1, 3) by 3/100 rad.
  x = jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 1, 4)
  c, s = np.cos([3, 0.03]), np.sin([3, 0.03])
  want = [
      c[0] - 3 * s[0],
      2 * c[1] - 4 * s[1],
      3 * c[0] + s[0],
      4 * c[1] + 2 * s[1],
  ]
  np.testing.assert_allclose(rotate(x, 3).ravel(), want, rtol=1e-5)


def test_scores_depend_only_on_distance():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))
  score = lambda i, j: jnp.einsum('BTNH,BSNH->N', rotate(q, i), rotate(k, j))
  np.testing.assert_allclose(score(5, 2), score(1005, 1002), atol=2e-4)


def test_theta_is_used():
  x = jnp.ones((1, 1, 1, 4))
  assert not np.allclose(rotate(x, 9, theta=1e4), rotate(x, 9, theta=1e6))


def test_far_positions_stay_apart_in_bfloat16():
  x = jnp.ones((1, 1, 1, 4), jnp.bfloat16)
  assert rotate(x, 32767).dtype == jnp.bfloat16
  assert not np.array_equal(rotate(x, 32767), rotate(x, 32766))


def test_far_angles_are_float32():
  positions = jnp.array([[32767]], jnp.int32)
  cos, _ = rope.angles(positions, 128, 1e6, None)
  exact = np.cos(32767 * 1e6 ** -(np.arange(0, 128, 2) / 128))
  # float32 counts radians here to 2e-3 at worst.
  np.testing.assert_allclose(cos[0, 0], exact, rtol=0, atol=4e-3)


def test_odd_head_dim():
  with pytest.raises(ValueError, match='H=3 is odd'):
    rotate(jnp.ones((1, 1, 1, 3)), 0)
