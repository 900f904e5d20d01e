"""What is drawn follows penalty, temperature, top-k, top-p, in that order."""

import functools
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from palign_jax.core import errors, keys
from palign_jax.sampling import logits as logits_lib, noise

V = 23
LIMIT = 20  # Three ids are padding.


def config(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0):
  return logits_lib.SamplingConfig(
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      repetition_penalty=repetition_penalty,
  )


def reference(logits, seen, c):
  """The distribution in float64, by sorting; one row."""
  x = logits.astype(np.float64)[:LIMIT]
  for i in np.flatnonzero(seen[:LIMIT]):
    r = c.repetition_penalty
    x[i] = x[i] / r if x[i] > 0 else x[i] * r
  if c.temperature == 0:
    p = np.zeros(V)
    p[np.argmax(x)] = 1
    return p
  x = x / c.temperature
  order = sorted(range(LIMIT), key=lambda i: (-x[i], i))
  if c.top_k:
    order = order[: c.top_k]
  p = np.exp(x[order] - x.max())
  p /= p.sum()
  num = next(
      (i + 1 for i in range(len(p)) if p[: i + 1].sum() >= c.top_p), None
  )
  order, p = order[:num], p[:num]
  out = np.zeros(V)
  out[order] = p / p.sum()
  return out


def rows(seed=0):
  """Returns ordinary rows, and awkward ones: ties, a spike, wide, negative."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(8, V)) * 3
  x[1] = 0.0
  x[2] = np.round(x[2])
  x[3, 5] = 80.0
  x[4] *= 50
  x[5] -= 100
  x[6, LIMIT:] = 1000.0  # Padding that would always win.
  x[7] = np.repeat([-1.0, 1.0], [12, 11])
  return x.astype(np.float32), rng.random((8, V)) < 0.3


SETTINGS = [
    *itertools.product([0.6], [1e-9, 0.31, 0.9], [0, 12], [1.3]),
    (7.0, 0.999, 0, 1.0),
    (7.0, 0.31, 19, 1.0),
    (0.6, 1.0, 1000, 1.0),
    (0.0, 0.5, 3, 2.0),
    (1.0, 1.0, 0, 1.0),
]


@pytest.mark.parametrize('temperature, top_p, top_k, penalty', SETTINGS)
def test_draws_are_those_of_the_sorted_reference(
    temperature, top_p, top_k, penalty
):
  """With the same noise: so the same tokens are in, ties included."""
  c, num = config(temperature, top_p, top_k, penalty), 200
  x, seen = rows()
  key = jnp.asarray(np.stack([keys.fold(7, i) for i in range(num)]))
  steps = jnp.arange(num, dtype=jnp.int32) % 7
  ids = jnp.arange(V, dtype=jnp.int32)[None]
  e = np.asarray(noise.exponential(key, steps, ids), np.float64)
  for one, mask in zip(x, seen, strict=True):
    p = reference(one, mask, c)
    race = np.where(p > 0, p / e, -1) if temperature else np.tile(p, (num, 1))
    assert draws(one, mask, c, num, 7).tolist() == race.argmax(1).tolist()


@pytest.mark.parametrize('top_p, top_k', [(0.9, 0), (0.5, 0), (0.95, 40)])
@pytest.mark.parametrize('scale', [0.3, 3.0])
def test_many_tokens(top_p, top_k, scale):
  """As above where sums round: flat and steep rows of 5,000 tokens."""
  c, num = config(1.0, top_p, top_k), 16
  rng = np.random.default_rng(3)
  x = (rng.normal(size=(num, 5000)) * scale).astype(np.float32)
  key = jnp.asarray(np.stack([keys.fold(8, i) for i in range(num)]))
  steps = jnp.zeros(num, jnp.int32)
  go = jax.jit(lambda x: logits_lib.draw(x, None, key, steps, c, 5000))
  ids = jnp.arange(5000, dtype=jnp.int32)[None]
  e = np.asarray(noise.exponential(key, steps, ids), np.float64)
  order = np.argsort(-x, axis=1, kind='stable')
  p = np.exp(np.take_along_axis(x, order, 1).astype(np.float64))
  p[:, top_k or 5000 :] = 0
  ahead = np.cumsum(p, axis=1) - p
  race = p / np.take_along_axis(e, order, 1)
  race[ahead >= top_p * p.sum(1, keepdims=True)] = -1
  want = np.take_along_axis(order, race.argmax(1)[:, None], 1)[:, 0]
  assert np.asarray(go(jnp.asarray(x))).tolist() == want.tolist()


def test_by_hand():
  x = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
  x = np.concatenate([x, np.full(V - 4, -np.inf, np.float32)])
  seen = np.zeros(V, bool)

  def kept(**c):
    found = set(draws(x, seen, config(**c), 300).tolist())
    return [i in found for i in range(4)]

  assert kept(top_p=0.4) == [True, False, False, False]
  assert kept(top_p=0.6) == [True, True, False, False]
  assert kept(top_p=0.8) == [True, True, True, False]  # The lower id of two.
  assert kept(top_k=3) == [True, True, True, False]
  # Over the three that are left, two hold 6/7 of the mass, no longer 3/4.
  assert kept(top_k=3, top_p=0.85) == [True, True, False, False]
  # At temperature 1/2 the first alone holds 0.73 of the mass.
  assert kept(temperature=0.5, top_p=0.7) == [True, False, False, False]


def test_the_penalty_divides_and_multiplies():
  x = jnp.array([[2.0, 2.0, -2.0, -2.0, 0.0]])
  seen = jnp.array([[True, False, True, False, True]])
  want = [[1.6, 2.0, -2.5, -2.0, 0.0]]
  np.testing.assert_allclose(logits_lib.penalize(x, seen, 1.25), want)


@functools.partial(jax.jit, static_argnums=4)
def draw(x, seen, key, steps, c):
  return logits_lib.draw(x, seen, key, steps, c, LIMIT)


def draws(x, seen, c, num, seed='draw'):
  """Returns `num` draws from one row, each under its own key."""
  name = (seed,) if isinstance(seed, int) else (0, seed)
  key = np.stack([keys.fold(*name, i) for i in range(num)])
  tile = lambda a: jnp.asarray(np.broadcast_to(a, (num, V)))
  steps = jnp.arange(num, dtype=jnp.int32) % 7
  return np.asarray(draw(tile(x), tile(seen), jnp.asarray(key), steps, c))


@pytest.mark.parametrize('row', [0, 1, 2])
@pytest.mark.parametrize('top_k', [0, 12])
def test_draws_follow_the_distribution(row, top_k):
  x, seen = rows()
  c, num = config(0.8, 0.8, top_k, 1.1), 20_000
  p = reference(x[row], seen[row], c)
  count = np.bincount(draws(x[row], seen[row], c, num), minlength=V)
  assert count[p == 0].sum() == 0
  kept = p > 0
  chi2 = ((count - num * p)[kept] ** 2 / (num * p)[kept]).sum()
  # The seed is fixed.
  assert 3 <= kept.sum() <= 17
  assert chi2 < scipy.stats.chi2.ppf(0.999, kept.sum() - 1)


def test_noise_is_exponential():
  key = jnp.asarray(np.stack([keys.fold(9, i) for i in range(4)]))
  steps, ids = jnp.arange(4, dtype=jnp.int32), jnp.arange(20_000)[None]
  e = np.asarray(noise.exponential(key, steps, ids))
  for row in e:
    assert scipy.stats.kstest(row, 'expon').pvalue > 1e-3
  assert np.abs(np.corrcoef(e) - np.eye(4)).max() < 0.03


def test_noise_is_threefry():
  words = jax.random.key_data(jax.random.key(5))
  counts = jnp.arange(10, dtype=jnp.uint32)
  key = tuple(jnp.full(5, word) for word in words)
  ours = noise.threefry(key, (counts[:5], counts[5:]))
  theirs = jax.extend.random.threefry_2x32(words, counts)
  assert jnp.concatenate(ours).tolist() == theirs.tolist()


def test_a_draw_depends_on_its_row_alone():
  x, seen = rows()
  key = jnp.asarray(np.stack([keys.fold(1, i) for i in range(8)]))
  steps = jnp.arange(8, dtype=jnp.int32)
  c = config(1.0, 0.9, 0, 1.05)
  go = lambda *args: draw(*args, c).tolist()
  x, seen = jnp.asarray(x), jnp.asarray(seen)
  together = go(x, seen, key, steps)
  assert go(x[::-1], seen[::-1], key[::-1], steps[::-1]) == together[::-1]
  alone = [
      go(x[i : i + 1], seen[i : i + 1], key[i : i + 1], steps[i : i + 1])[0]
      for i in range(8)
  ]
  assert alone == together


@pytest.mark.parametrize('c', [(0.0,), (), (1.0, 0.9), (1.0, 0.9, 5)])
def test_nothing_is_drawn_of_logits_that_are_not_finite(c):
  x, seen = rows()
  key = jnp.asarray(np.stack([keys.fold(1, i) for i in range(8)]))
  go = lambda x: draw(x, seen, key, jnp.arange(8), config(*c)).tolist()
  want = go(x)
  x[6, LIMIT:] = np.nan  # Padding may be anything.
  assert go(x) == want and min(want) >= 0
  x[1, 3], x[2, 0], x[4, 7], x[5] = np.nan, -np.nan, np.inf, -np.inf
  for row in (1, 2, 4, 5):
    want[row] = -1
  assert go(x) == want


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_padding_is_never_drawn(temperature):
  x, seen = rows()
  assert draws(x[6], seen[6], config(temperature), 500).max() < LIMIT


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('temperature', -0.1, r'temperature is -0.1; it must be at least 0'),
        ('top_p', 0.0, r'top_p is 0.0; it must be above 0 and at most 1'),
        ('top_p', 1.5, r'top_p is 1.5; it must be above 0 and at most 1'),
        ('top_k', -1, r'top_k is -1; it must be at least 0 \(all\)'),
        ('repetition_penalty', 0.0, r'penalty is 0.0; it must be above 0'),
    ],
)
def test_values_that_cannot_be(field, value, message):
  with pytest.raises(errors.ConfigError, match=message):
    config(**{field: value})
