"""Packing and chunks change neither the loss nor its gradient."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder
from palign_jax.training import loss
from tests.training import tiny

SIZES = (9, 14, 5, 20)


@pytest.fixture(scope='module')
def params():
  return tiny.params()


def value_and_grad(params, batch, cotangent=1.0, **changes):
  config = dataclasses.replace(tiny.LOSS, **changes)
  batch = {k: jnp.asarray(v) for k, v in batch.items()}

  @jax.jit
  def run(params):
    total, pull = jax.vjp(
        lambda p: loss.weighted_sum(p, tiny.MODEL, batch, config), params
    )
    return total, pull(jnp.float32(cotangent))[0]

  return run(params)


def close(got, want, rtol=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = np.abs(b).max()
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale)


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
  got, _ = value_and_grad(params, tiny.batch([e], max_tokens=6))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_packed_equals_unpacked(params):
  four = [tiny.example(i, size) for i, size in enumerate(SIZES)]
  alone = value_and_grad(params, tiny.batch(*([e] for e in four)))
  packed = value_and_grad(
      params, tiny.batch([four[3], four[0]], [four[1], four[2]], [], [])
  )
  close(packed, alone)


@pytest.mark.parametrize('chunk_size', [5, 16])
def test_chunked_equals_plain(params, chunk_size):
  batch = tiny.batch([tiny.example(0, 30)], [tiny.example(1, 11)])
  plain = value_and_grad(params, batch, cotangent=-3.7)
  close(value_and_grad(params, batch, -3.7, chunk_size=chunk_size), plain)


def test_remat_changes_nothing(params):
  batch = tiny.batch([tiny.example(0, 30)])
  plain = value_and_grad(params, batch)
  close(value_and_grad(params, batch, remat='full'), plain)


def test_nothing_is_predicted_across_a_seam():
  batch = tiny.batch([tiny.example(0, 3), tiny.example(1, 2)], max_tokens=7)
  batch['weights'][:] = 1.0
  goal, weights = loss.targets({k: jnp.asarray(v) for k, v in batch.items()})
  np.testing.assert_array_equal(weights, [[1, 1, 0, 1, 0, 0, 0]])
  np.testing.assert_array_equal(goal[0, :4], batch['tokens'][0, 1:5])
