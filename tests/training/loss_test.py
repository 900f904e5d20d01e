"""Packing and chunks change neither the loss nor its gradient."""

import dataclasses
import math

import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.models import decoder, kernels, lora, remat
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.training import loss
from tests.training import tiny

FOUR = [tiny.example(i, size) for i, size in enumerate((9, 14, 5, 20))]


@pytest.fixture(scope='module')
def params():
  return tiny.params()


def value_and_grad(params, batch, cotangent=1.0, model=tiny.MODEL, **changes):
  config = dataclasses.replace(tiny.LOSS, **changes)
  mesh = config.attention.mesh
  if mesh is None:
    batch = {k: jnp.asarray(v) for k, v in batch.items()}
  else:
    where = jax.NamedSharding(mesh, mesh_lib.TOKENS)
    batch = jax.device_put(dict(batch), where)
    axes = decoder.logical_axes(model)
    params = jax.device_put(params, rules.tree_shardings(params, axes, mesh))

  @jax.jit
  def run(params):
    total, pull = jax.vjp(
        lambda p: loss.weighted_sum(p, model, batch, config), params
    )
    return total, pull(jnp.float32(cotangent))[0]

  return run(params)


def close(got, want, rtol=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


def plain(params, model, batch):
  """The same in the plainest words, to be differentiated by JAX."""
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  x = decoder.hidden(
      params,
      model,
      *(batch[k] for k in ('tokens', 'positions', 'segments')),
      dtype=jnp.dtype('float32'),
  )
  log_p = jax.nn.log_softmax(decoder.logits(params, model, x))
  goal, weights = loss.targets(batch)
  chosen = jnp.take_along_axis(log_p, goal[..., None], axis=-1)[..., 0]
  return -jnp.sum(weights * chosen)


def test_is_the_weighted_sum_of_log_probabilities(params):
  e = tiny.example(0, 6)
  want = 0.0
  x = decoder.hidden(
      params,
      tiny.MODEL,
      jnp.asarray(e.tokens[None]),
      jnp.arange(6)[None],
      None,
      dtype=jnp.dtype('float32'),
  )
  log_p = jax.nn.log_softmax(decoder.logits(params, tiny.MODEL, x)[0])
  for t in range(1, 6):
    want -= float(e.weights[t]) * float(log_p[t - 1, e.tokens[t]])
  batch = tiny.batch([e], max_tokens=6)
  got, _ = value_and_grad(params, batch)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(plain(params, tiny.MODEL, batch), want, rtol=1e-5)


UNTIED = dataclasses.replace(tiny.MODEL, tied=False)
# On a mesh and not; tied and not; all at once, in chunks, in ragged chunks.
CASES = [
    (tiny.MODEL, {}, 0),
    (tiny.MODEL, {}, 5),
    (UNTIED, {}, 16),
    (tiny.MODEL, {'data': 2, 'fsdp': 2, 'tensor': 2}, 5),
    (UNTIED, {'fsdp': 2, 'tensor': 2, 'sequence': 2}, 5),
    (UNTIED, {'data': 2, 'fsdp': 2, 'sequence': 2}, 0),
]


@pytest.mark.parametrize('model, sizes, chunk_size', CASES)
def test_value_and_gradient_are_those_of_the_plain_loss(
    model, sizes, chunk_size
):
  params = tiny.params(model)
  rows = [[tiny.example(i, n)] for i, n in enumerate((30, 11, 32, 7))]
  batch = tiny.batch(*rows)
  on = kernels.Backend('auto', mesh_lib.make(sizes)) if sizes else kernels.XLA
  got = value_and_grad(
      params, batch, -3.7, model=model, chunk_size=chunk_size, attention=on
  )
  total, pull = jax.jit(lambda p: jax.vjp(lambda p: plain(p, model, batch), p))(
      params
  )
  close(got, (total, pull(jnp.float32(-3.7))[0]))


def test_in_bfloat16_the_head_adds_up_in_float32():
  """Chunks of two tokens: added up in bfloat16 they would lose digits."""
  params = tiny.params(UNTIED)
  batch = tiny.batch(*([tiny.example(i, 32)] for i in range(8)))
  head = lambda **how: np.asarray(
      value_and_grad(params, batch, model=UNTIED, dtype='bfloat16', **how)[1][
          'lm_head'
      ]['kernel']
  )
  whole, parts = head(chunk_size=0), head(chunk_size=2)
  assert np.abs(parts - whole).max() < 2e-4 * np.abs(whole).max()


def test_adapters_under_a_frozen_head_on_a_mesh(params):
  adapters = jax.tree.map(lambda x: x + 0.1, tiny.adapters(4))
  batch = tiny.batch(*([tiny.example(i, 30)] for i in range(4)))
  mesh = mesh_lib.make({'fsdp': 2, 'tensor': 2, 'sequence': 2})
  joined = lambda p: lora.join(params, p)
  total, pull = jax.vjp(lambda p: plain_adapted(joined(p), batch), adapters)
  config = dataclasses.replace(
      tiny.LOSS,
      chunk_size=5,
      attention=kernels.Backend('auto', mesh),
  )
  on = jax.device_put(dict(batch), jax.NamedSharding(mesh, mesh_lib.TOKENS))
  run = lambda p: loss.weighted_sum(joined(p), tiny.MODEL, on, config)
  got, got_pull = jax.jit(lambda p: jax.vjp(run, p))(adapters)
  scale = jnp.float32(2.5)
  close((got, got_pull(scale)[0]), (total, pull(scale)[0]))


def plain_adapted(params, batch):
  """Without a mesh or chunks; compared with `plain` above."""
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  return loss.weighted_sum(params, tiny.MODEL, batch, tiny.LOSS)


@pytest.fixture(scope='module')
def alone(params):
  return value_and_grad(params, tiny.batch(*([e] for e in FOUR)))


@pytest.mark.parametrize(
    'name, sizes', [('xla', {}), ('pallas', {}), ('xla', {'sequence': 2})]
)
def test_packed_equals_unpacked(params, alone, name, sizes):
  mesh = mesh_lib.make(sizes, jax.devices()[:2]) if sizes else None
  packed = value_and_grad(
      params,
      tiny.batch([FOUR[3], FOUR[0]], [FOUR[1], FOUR[2]], [], []),
      attention=kernels.Backend(name, mesh),
  )
  close(packed, alone)


def test_cudnn_does_not_take_packed_rows(params):
  with pytest.raises(errors.ConfigError, match='sequences of packed rows apar'):
    value_and_grad(
        params,
        tiny.batch([tiny.example(0, 9), tiny.example(1, 4)]),
        attention=kernels.Backend('cudnn'),
    )


def test_no_logits_twice(params):
  """Products of a chunk: logits, gradient of the stream, and of the head."""
  batch = tiny.batch([tiny.example(0, 30)])
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  config = dataclasses.replace(tiny.LOSS, chunk_size=16)
  head = {'embed': params['embed']}
  run = lambda trained, frozen: loss.weighted_sum(
      {**frozen, **trained}, tiny.MODEL, batch, config
  )
  rest = {k: v for k, v in params.items() if k != 'embed'}
  V, D = tiny.MODEL.vocab_size, tiny.MODEL.embed_dim
  logits, of_head, of_stream = (1, 16, V), {(V, D), (D, V)}, (1, 16, D)
  for trained, frozen in ((params, {}), (rest, head)):
    shapes = products(jax.make_jaxpr(jax.grad(run))(trained, frozen).jaxpr)
    assert shapes.count(logits) == shapes.count(of_stream) == 1
    assert sum(map(shapes.count, of_head)) == (trained is params)


def products(jaxpr):
  """Returns the shapes that matrix products in a program have."""
  found = []
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      found.append(eqn.outvars[0].aval.shape)
    for inner in core.jaxprs_in_params(eqn.params):
      found += products(inner)
  return found


@pytest.fixture(scope='module')
def without(params):
  return value_and_grad(params, tiny.batch([tiny.example(0, 30)]))


@pytest.mark.parametrize('name', [n for n in remat.NAMES if n != 'none'])
def test_remat_changes_nothing(params, without, name):
  batch = tiny.batch([tiny.example(0, 30)])
  close(value_and_grad(params, batch, remat=name), without)


def test_what_remat_keeps(params):
  batch = tiny.batch([tiny.example(0, 30)])
  batch = {k: jnp.asarray(v) for k, v in batch.items()}

  def kept(name):
    config = dataclasses.replace(tiny.LOSS, remat=name)
    _, pull = jax.eval_shape(
        lambda p: jax.vjp(
            lambda p: loss.weighted_sum(p, tiny.MODEL, batch, config), p
        ),
        params,
    )
    return sum(x.size for x in jax.tree.leaves(pull))

  kept = {name: kept(name) for name in remat.NAMES}
  layers, heads = 2 * 32, tiny.MODEL.num_heads
  extra = heads * tiny.MODEL.head_dim + heads  # Values and log-sum-exp.
  assert kept['save_attention'] - kept['full'] == layers * extra
  assert kept['full'] < kept['save_attention'] < kept['dots'] < kept['none']


def test_unknown_remat(params):
  with pytest.raises(errors.ConfigError, match="'some'; it can be none, dots"):
    value_and_grad(params, tiny.batch([tiny.example(0, 9)]), remat='some')


@pytest.mark.parametrize(
    'sizes, chunk_size',
    [({'sequence': 4}, 24), ({'fsdp': 2, 'tensor': 2, 'sequence': 2}, 0)],
)
def test_rows_that_are_split(params, sizes, chunk_size):
  # More than one block of queries in each part, and examples across parts.
  batch = tiny.batch(
      [tiny.example(0, 150), tiny.example(1, 100)],
      [tiny.example(2, 30), tiny.example(3, 290)],
      max_tokens=320,
  )
  devices = jax.devices()[: math.prod(sizes.values())]
  on = kernels.Backend('auto', mesh_lib.make(sizes, devices))
  got = value_and_grad(params, batch, 2.5, attention=on, chunk_size=chunk_size)
  close(got, value_and_grad(params, batch, 2.5))


def test_rows_that_do_not_split(params):
  mesh = mesh_lib.make({'sequence': 2}, jax.devices()[:2])
  config = dataclasses.replace(
      tiny.LOSS, attention=kernels.Backend('auto', mesh)
  )
  make = lambda width: {
      k: jnp.asarray(v)
      for k, v in tiny.batch([tiny.example(0, 9)], max_tokens=width).items()
  }
  with pytest.raises(errors.ConfigError, match='do not split 2 ways over seq'):
    loss.weighted_sum(params, tiny.MODEL, make(9), config)
  for name, message in (
      ('cudnn', 'takes whole rows, and config.mesh.sequence splits them'),
      ('pallas', '10 tokens in 2 parts are no multiples of 128'),
  ):
    named = dataclasses.replace(config, attention=kernels.Backend(name, mesh))
    with pytest.raises(errors.ConfigError, match=message):
      loss.weighted_sum(params, tiny.MODEL, make(10), named)


def test_nothing_is_predicted_across_a_seam():
  batch = tiny.batch([tiny.example(0, 3), tiny.example(1, 2)], max_tokens=7)
  batch['weights'][:] = 1.0
  goal, weights = loss.targets({k: jnp.asarray(v) for k, v in batch.items()})
  np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0, 0]])
  np.testing.assert_array_equal(goal[0, :4], batch['tokens'][0, 1:5])
