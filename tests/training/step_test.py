"""What a step promises: the same update however its batch is cut up."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.models import decoder, lora
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.training import step
from tests.training import tiny

NUM_ROWS = 8
MUON = dataclasses.replace(
    tiny.OPTIM, name='muon', peak_lr=0.02, weight_decay=0.0
)


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
  """Returns the parameters and scalars after one step."""
  state = tiny.start(params)
  state, scalars = tiny.stepper(state, frozen, **changes)(state, batch())
  return state.params, scalars


@pytest.fixture(scope='module')
def plain():
  return one(tiny.params(), {})


def test_accumulation_changes_nothing(plain):
  params, scalars = one(tiny.params(), {}, num_microbatches=4)
  close(scalars, plain[1])
  close(params, plain[0])


def test_sharded_equals_unsharded(plain):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  params = tiny.params()
  axes = decoder.logical_axes(tiny.MODEL)
  params = jax.device_put(params, rules.tree_shardings(params, axes, mesh))
  want = params['layers']['q']['kernel'].sharding
  state = tiny.start(params)
  assert state.opt_state[0].mu['layers']['q']['kernel'].sharding == want
  run = tiny.stepper(state, {}, mesh=mesh, num_microbatches=2)
  state, scalars = run(state, batch())
  assert state.params['layers']['q']['kernel'].sharding == want
  close(scalars, plain[1])
  close(state.params, plain[0])


def test_lora_trains_adapters_over_a_frozen_bfloat16_base():
  base = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.params())
  adapters = tiny.adapters(rank=4)
  structure = jax.tree.structure(adapters)
  state = tiny.start(adapters, num_steps=40)
  run = tiny.stepper(state, base, num_steps=40)
  losses = []
  for _ in range(12):
    state, scalars = run(state, batch())
    losses.append(float(scalars['loss']))
  assert losses[-1] < losses[0] - 0.1
  assert jax.tree.structure(state.params) == structure
  for name in lora.PROJECTIONS:
    lora_b = np.asarray(state.params['layers'][name]['lora_b'])
    assert lora_b.dtype == np.float32
    assert (np.abs(lora_b).reshape(2, -1).max(axis=1) > 0).all()


def test_muon_memorises():
  state = tiny.start(tiny.params(), MUON, num_steps=60)
  run = tiny.stepper(state, {}, optim_config=MUON, num_steps=60)
  rows = tiny.batch([tiny.example(1, 12), tiny.example(2, 18)])
  losses = []
  for _ in range(60):
    state, scalars = run(state, rows)
    losses.append(float(scalars['loss']))
  assert losses[0] > 3.0
  assert losses[-1] < 0.1
  assert int(state.step) == 60


def test_rows_that_do_not_split():
  state = tiny.start(tiny.params())
  run = tiny.stepper(state, {}, num_microbatches=3)
  message = 'batch of 8 rows does not split into 3 microbatches'
  with pytest.raises(errors.ConfigError, match=message):
    run(state, batch())


def test_scalars(plain):
  assert set(plain[1]) == {'loss', 'grad_norm', 'weight', 'lr', 'first_bad'}
  weights = [tiny.example(i, n) for i, n in enumerate(_sizes())]
  total = sum(e.weights[1:].sum() for e in weights)
  np.testing.assert_allclose(plain[1]['weight'], total, rtol=1e-6)
  np.testing.assert_allclose(plain[1]['lr'], 1e-2, rtol=1e-6)
  assert int(plain[1]['first_bad']) == -1


def test_a_failed_step_and_those_after_it_change_nothing():
  state = tiny.start(tiny.params())
  run = tiny.stepper(state, {})
  state, _ = run(state, batch())
  before = jax.tree.map(np.array, state)  # Copies: the state is donated.
  bad = batch()
  bad['weights'][:] = np.nan
  for rows, want in ((bad, -2), (batch(), -2), (batch(), -2)):
    state, scalars = run(state, rows)
    assert int(state.step) == want
  assert np.isfinite(scalars['loss'])  # Of the step after it.
  for part in ('params', 'opt_state'):
    one, two = getattr(before, part), jax.device_get(getattr(state, part))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def _sizes():
  return np.random.default_rng(0).integers(3, 32, NUM_ROWS)


def test_an_opt_state_is_float32():
  state = tiny.start(tiny.params(), MUON)
  kinds = {x.dtype for x in jax.tree.leaves(state) if x.ndim}
  assert kinds == {jnp.dtype('float32')}
  assert isinstance(state, step.TrainState)
