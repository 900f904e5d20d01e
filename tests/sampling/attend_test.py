"""A decoding row attends to its own tokens up to its own place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import attend

B, K, N, H, S = 16, 2, 4, 8, 384
ALONE = kernels.Backend('xla', mesh_lib.alone())
step = jax.jit(attend.step, static_argnums=0)


@pytest.fixture(scope='module')
def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  places = np.array([0, 1, 127, 128, 129, 383, 5, 200] * 2, np.int32)
  live = np.arange(B) < 8
  return (
      draw(B, N, H),
      draw(B, K, H),
      draw(B, K, H),
      draw(B, K, H, S),
      draw(B, K, S, H),
      jnp.asarray(places),
      jnp.asarray(live),
  )


def reference(q, k, v, keys, values, place):
  """One row, in float64."""
  keys, values = (np.array(x, np.float64) for x in (keys, values))
  keys[:, :, place], values[:, place] = k, v
  out = np.zeros((N, H))
  for n in range(N):
    head = n // (N // K)
    score = np.asarray(q[n], np.float64) @ keys[head, :, : place + 1] / H**0.5
    p = np.exp(score - score.max())
    out[n] = p @ values[head, : place + 1] / p.sum()
  return out


@pytest.mark.parametrize('name', ['xla', 'pallas'])
def test_is_the_definition(inputs, name):
  out, keys, values = step(kernels.Backend(name, ALONE.mesh), *inputs)
  q, k, v, old_keys, old_values, places, live = map(np.asarray, inputs)
  for b in range(B):
    at = places[b] if live[b] else S - 1
    np.testing.assert_array_equal(keys[b, :, :, at], k[b])
    np.testing.assert_array_equal(values[b, :, at], v[b])
    others = np.arange(S) != at
    np.testing.assert_array_equal(
        np.asarray(keys)[b][:, :, others], old_keys[b][:, :, others]
    )
    if live[b]:
      want = reference(q[b], k[b], v[b], old_keys[b], old_values[b], at)
      np.testing.assert_allclose(out[b], want, atol=1e-5)


def test_idle_rows_stay_finite(inputs):
  """What they store would otherwise poison the row that comes after them."""
  out, _, _ = step(ALONE, *inputs)  # The last eight are a group of their own.
  assert np.isfinite(out).all()


@pytest.mark.bits
def test_neighbours_number_and_capacity_change_no_bit(inputs):
  want = np.asarray(step(ALONE, *inputs)[0])
  q, k, v, keys, values, places, live = inputs
  back = lambda x: x[::-1]
  out = step(ALONE, *map(back, inputs))[0]
  np.testing.assert_array_equal(np.asarray(out)[::-1][:8], want[:8])
  out = step(ALONE, *(x[:8] for x in inputs))[0]
  np.testing.assert_array_equal(out, want[:8])
  keys = jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, 128)))
  values = jnp.pad(values, ((0, 0), (0, 0), (0, 128), (0, 0)))
  out = step(ALONE, q, k, v, keys, values, places, live)[0]
  np.testing.assert_array_equal(np.asarray(out)[:8], want[:8])


def test_a_group_is_read_up_to_its_furthest_row_only(inputs):
  q, k, v, keys, values, _, live = inputs
  places = jnp.asarray([5, 120] * 8, jnp.int32)
  unread = np.array(values)
  unread[:, :, 128:] = np.nan
  run = lambda values: step(ALONE, q, k, v, keys, values, places, live)[0]
  np.testing.assert_array_equal(run(jnp.asarray(unread))[:8], run(values)[:8])


def test_a_mesh_gives_the_same(inputs):
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  want = step(ALONE, *inputs)
  live = np.asarray(inputs[-1])
  for name in ('xla', 'pallas'):
    got = step(kernels.Backend(name, mesh), *inputs)
    for mine, theirs in zip(got, want, strict=True):
      mine, theirs = np.asarray(mine)[live], np.asarray(theirs)[live]
      np.testing.assert_allclose(mine, theirs, atol=1e-6)
