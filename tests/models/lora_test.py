"""Adapters start as nothing, and merged they do what they did beside."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder, lora
from tests.models import tiny

CONFIG = dataclasses.replace(tiny.CONFIG, tied=True)
RANK, SCALE = 3, 1.5
merge = jax.jit(lora.merge, static_argnames='scale')


@functools.partial(jax.jit, static_argnames='lora_scale')
def logits(params, lora_scale):
  x = tiny.tokens(1, 7)
  out = decoder.hidden(
      params,
      CONFIG,
      x,
      tiny.places(x),
      None,
      dtype=jnp.float32,
      lora_scale=lora_scale,
  )
  return decoder.logits(params, CONFIG, out)


@pytest.fixture(scope='module')
def params():
  return tiny.weights(CONFIG)


@pytest.fixture(scope='module')
def adapters():
  return jax.jit(lambda key: lora.init(CONFIG, RANK, key))(jax.random.key(0))


@pytest.fixture(scope='module')
def trained(adapters):
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype)
  return jax.tree.map(draw, adapters)


def test_new_adapters_change_nothing(params, adapters):
  got = logits(lora.join(params, adapters), SCALE)
  want = logits(params, SCALE)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_initial_values(adapters):
  assert adapters['layers'].keys() == set(lora.PROJECTIONS)
  for name, fan_in in dict(q=16, o=4 * 6, gate=16, down=20).items():
    a = np.asarray(adapters['layers'][name]['lora_a'])
    bound = 1 / np.sqrt(fan_in)
    assert 0.8 * bound < np.abs(a).max() <= bound
    assert not np.array_equal(a[0], a[1])
    assert not adapters['layers'][name]['lora_b'].any()


def test_merged_is_joined(params, trained):
  got = logits(merge(params, trained, scale=SCALE), 0.0)
  joined = lora.join(params, trained)
  want = logits(joined, SCALE)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
  assert np.abs(want - logits(params, SCALE)).max() > 0.1
  assert np.abs(want - logits(joined, 1.0)).max() > 0.1


def test_every_adapter_matters(params, trained):
  want = logits(lora.join(params, trained), SCALE)
  for name in lora.PROJECTIONS:
    zeros = jax.tree.map(jnp.zeros_like, trained['layers'][name])
    without = {'layers': trained['layers'] | {name: zeros}}
    got = logits(lora.join(params, without), SCALE)
    assert np.abs(got - want).max() > 1e-3, name


def test_merge_sums_in_float32(params, trained):
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  got = merge(half, trained, scale=SCALE)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), half)
  want = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), merge(wide, trained, scale=SCALE)
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_axes_name_every_axis(adapters):
  axes = lora.logical_axes(CONFIG, RANK)
  size = dict(layers=2, embed=16, heads=4, kv_heads=2, head_dim=6)
  size.update(rank=RANK, small_head_dim=6, small_mlp=20)
  got = jax.tree.map(
      lambda names: tuple(size[n] for n in names),
      axes,
      is_leaf=lambda x: isinstance(x, tuple),
  )
  assert got == jax.tree.map(lambda x: x.shape, adapters)
