"""Schedules by hand; decay on matrices only; Muon makes matrices orthogonal."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.training import optim
from tests.training import tiny


@pytest.mark.parametrize(
    'decay, want',
    [
        ('cosine', [0.5, 1.0, 1.0, 0.925, 0.55, 0.175, 0.1]),
        ('linear', [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1]),
        ('constant', [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedule(decay, want):
  config = dataclasses.replace(
      tiny.OPTIM, peak_lr=1.0, warmup_frac=0.2, decay=decay
  )
  rate = optim.schedule(config, num_steps=10)
  # The half-way point of a quarter of a cosine lies at (1 + cos(pi/4)) / 2.
  got = [float(rate(jnp.int32(s))) for s in (0, 1, 2, 4, 6, 8, 10)]
  if decay == 'cosine':
    want[3] = 0.1 + 0.9 * (1 + np.cos(np.pi / 4)) / 2
    want[5] = 0.1 + 0.9 * (1 - np.cos(np.pi / 4)) / 2
  np.testing.assert_allclose(got, want, rtol=1e-6)


PARAMS = {
    'layers': {
        'o': {'kernel': np.random.default_rng(0).normal(size=(2, 4, 8, 24))},
        'attn_norm': {'scale': np.ones((2, 24))},
    },
    'embed': {'table': np.ones((7, 24))},
}


def update(grads_scale=1.0, **changes):
  config = dataclasses.replace(tiny.OPTIM, **changes)
  optimizer = optim.make(config, lambda _: jnp.float32(1))
  params = _float32(PARAMS)
  return optimizer.update(
      _float32(PARAMS, grads_scale), optimizer.init(params), params
  )[0]


def _float32(tree, scale=1.0):
  if isinstance(tree, dict):
    return {k: _float32(v, scale) for k, v in tree.items()}
  return jnp.asarray(tree * scale, jnp.float32)


@pytest.fixture(autouse=True)
def standard_promotion(monkeypatch):
  """Optax mixes dtypes; step.py allows it in the same way."""
  import jax

  with jax.numpy_dtype_promotion('standard'):
    yield


def test_decay_only_on_matrices():
  got = update(grads_scale=0.0, weight_decay=0.1)
  np.testing.assert_array_equal(got['layers']['attn_norm']['scale'], 0)
  np.testing.assert_allclose(got['embed']['table'], -0.1, rtol=1e-6)
  want = -0.1 * PARAMS['layers']['o']['kernel']
  np.testing.assert_allclose(got['layers']['o']['kernel'], want, rtol=1e-6)


def test_muon_makes_each_layers_matrix_orthogonal():
  got = update(name='muon', weight_decay=0.0)
  assert got['layers']['o']['kernel'].shape == (2, 4, 8, 24)
  matrices = np.asarray(got['layers']['o']['kernel']).reshape(2, 32, 24)
  scale = 0.2 * np.sqrt(32)
  for matrix in matrices:
    singular = np.linalg.svd(matrix, compute_uv=False) / scale
    assert singular.min() > 0.6
    assert singular.max() < 1.3
  # Not the two layers as one matrix.
  together = np.linalg.svd(matrices.reshape(64, 24), compute_uv=False) / scale
  assert together.max() > 1.3
  # AdamW's first step is the sign of the gradient.
  np.testing.assert_allclose(got['embed']['table'], -1.0, rtol=2e-3)


@pytest.mark.parametrize('field', ['name', 'decay'])
def test_unknown_names(field):
  config = dataclasses.replace(tiny.OPTIM, **{field: 'sgd'})
  message = f"config.sft.optim.{field} is 'sgd'; it"
  with pytest.raises(errors.ConfigError, match=message):
    optim.make(config, optim.schedule(config, 10))
