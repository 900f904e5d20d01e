"""Int8 kernels: how far off, and that adapters learn on them all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder, lora, quantization
from palign_jax.parallel import mesh as mesh_lib, rules
from tests.training import tiny


def logits(params):
  tokens = np.random.default_rng(0).integers(0, 40, (4, 24))
  tokens = jnp.asarray(tokens, jnp.int32)
  places = jnp.broadcast_to(jnp.arange(24, dtype=jnp.int32), tokens.shape)
  x = decoder.hidden(
      params, tiny.MODEL, tokens, places, None, dtype=jnp.dtype('float32')
  )
  return np.asarray(decoder.logits(params, tiny.MODEL, x))


@pytest.fixture(scope='module')
def both():
  return tiny.params(), quantization.quantize(tiny.params(), tiny.MODEL)


def test_every_weight_is_within_half_a_step(both):
  plain, small = both
  for name in decoder.PROJECTIONS:
    kernel = np.asarray(plain['layers'][name]['kernel'])
    parts = small['layers'][name]
    assert parts['kernel'].dtype == jnp.int8
    ends = kernel.ndim - parts['kernel_scale'].ndim
    step = np.expand_dims(parts['kernel_scale'], tuple(range(1, 1 + ends)))
    error = np.abs(np.asarray(parts['kernel'], np.float32) * step - kernel)
    assert np.all(error <= step * 0.5001)
    assert np.abs(parts['kernel']).max() == 127
  same = lambda tree: {k: v for k, v in tree.items() if k != 'layers'}
  jax.tree.map(np.testing.assert_array_equal, same(small), same(plain))


def test_logits_move_by_about_a_hundredth_of_their_spread(both):
  want, got = map(logits, both)
  error = np.sqrt(np.mean((got - want) ** 2)) / want.std()
  assert 0.001 < error < 0.02


def test_an_output_without_weights():
  params = tiny.params()
  up = params['layers']['up']
  up['kernel'] = up['kernel'].at[:, :, 3].set(0)
  small = quantization.quantize(params, tiny.MODEL)
  assert not np.asarray(small['layers']['up']['kernel'][:, :, 3]).any()
  assert np.isfinite(logits(small)).all()


def test_adapters_learn_on_it(both):
  _, small = both
  run_on = lambda base: _losses(base, tiny.adapters(4))
  got, want = run_on(small), run_on(tiny.params())
  assert got[-1] < got[0] - 0.1
  np.testing.assert_allclose(got, want, rtol=0.02)


def _losses(base, adapters):
  state = tiny.start(adapters, num_steps=20)
  run = tiny.stepper(state, base, num_steps=20)
  found = []
  for _ in range(6):
    batch = tiny.batch([tiny.example(1, 12)], [tiny.example(2, 30)])
    state, scalars = run(state, batch)
    found.append(float(scalars['loss']))
  return found


def test_it_lies_as_the_table_says(both):
  mesh = mesh_lib.make({'fsdp': 2, 'tensor': 2, 'sequence': 2})
  axes = decoder.logical_axes(tiny.MODEL)
  params = tiny.params()
  params = jax.device_put(params, rules.tree_shardings(params, axes, mesh))
  kernel = params['layers']['q']['kernel']
  small = quantization.quantize(params, tiny.MODEL, mesh)
  assert kernel.is_deleted()
  like = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
  assert like(quantization.abstract(tiny.params())) == like(small)
  q = small['layers']['q']
  assert q['kernel'].sharding.shard_shape(q['kernel'].shape) == (2, 8, 2, 16)
  scale = q['kernel_scale']
  assert scale.sharding.shard_shape(scale.shape) == (2, 2, 4)
  want = both[1]['layers']['q']['kernel']
  np.testing.assert_array_equal(q['kernel'], want)
  joined = lora.join(small, tiny.adapters(4))
  assert set(joined['layers']['q']) == {
      'kernel',
      'kernel_scale',
      'bias',
      'lora_a',
      'lora_b',
  }
