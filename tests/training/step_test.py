"""What a step promises: the same update however its batch is cut up."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import tiny

NUM_ROWS = 8


def batch(seed=0):
  """Rows of unequal weight: a mean of row means would differ."""
  rng = np.random.default_rng(seed)
  sizes = rng.integers(3, 32, NUM_ROWS)
  return tiny.batch(*([tiny.example(i, n)] for i, n in enumerate(sizes)))


def close(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(
        np.asarray(a), np.asarray(b), rtol=1e-4, atol=2e-6
    )


def one(params, frozen, **changes):
  state = tiny.start(jax.tree.map(jnp.copy, params))
  state, scalars = tiny.stepper(state, frozen, **changes)(state, batch())
  return state.params, scalars


@pytest.fixture(scope='module')
def plain():
  return one(tiny.params(), {})


def test_accumulation_changes_nothing(plain):
  params, scalars = one(tiny.params(), {}, num_microbatches=4)
  close(scalars, plain[1])
  close(params, plain[0])
