"""Packed weights are the model's, and change no row's bits with the number."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import config as config_lib, decoder, lora
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.sampling import weights

CONFIG = config_lib.ModelConfig(
    vocab_size=96,
    num_layers=2,
    embed_dim=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    mlp_dim=352,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=True,
    tied=False,
)


@pytest.fixture(scope='module')
def params():
  base = decoder.init(CONFIG, jax.random.key(0), jnp.float32)
  adapters = lora.init(CONFIG, 4, jax.random.key(1))
  return lora.join(base, jax.tree.map(lambda x: x + 0.1, adapters))


def test_unpacked_they_are_the_model(params):
  unpacked = jax.jit(weights.unpack, static_argnums=(1, 2))(
      weights.pack(params, 'cpu'), CONFIG, 'cpu'
  )
  want = decoder.unstack(params)
  assert jax.tree.structure(unpacked) == jax.tree.structure(want)
  jax.tree.map(np.testing.assert_array_equal, unpacked, want)


def test_what_is_no_kernel_is_not_copied(params):
  unstacked = decoder.unstack(params)
  packed = weights.pack(unstacked, 'cpu')
  assert packed['embed']['table'] is unstacked['embed']['table']
  for layer, old in zip(packed['layers'], unstacked['layers'], strict=True):
    assert layer['attn_norm']['scale'] is old['attn_norm']['scale']


def test_they_stay_split_over_a_mesh(params):
  mesh = mesh_lib.make({'data': 1, 'fsdp': 4, 'tensor': 2})
  axes = decoder.logical_axes(CONFIG, rank=4)
  spread = jax.device_put(params, rules.tree_shardings(params, axes, mesh))
  packed = weights.pack(spread, 'cpu')
  here = lambda tree: sum(
      x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree)
  )
  # But for adapters: of axes put together only the first stays split.
  assert here(packed) < 1.05 * here(spread)


@pytest.mark.bits
def test_the_number_of_rows_changes_no_bit():
  """From 4,096 numbers on; see buckets.py."""
  config = dataclasses.replace(
      CONFIG, embed_dim=512, num_kv_heads=4, head_dim=128
  )
  base = decoder.init(config, jax.random.key(0), jnp.float32)
  packed = weights.pack(
      lora.join(base, lora.init(config, 4, jax.random.key(1))), 'cpu'
  )

  @jax.jit
  def go(packed, x):
    layer = weights.unpack(packed, config, 'cpu')['layers'][0]
    block = decoder._block(config, layer)
    attend = lambda q, k, v: (q + k + v, None)
    return block(x[:, None], lambda y: y, attend, 0.5)[0][:, 0]

  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 512)), jnp.float32)
  want = np.asarray(go(packed, x))
  for num in (48, 24, 8):
    np.testing.assert_array_equal(go(packed, x[:num]), want[:num])
