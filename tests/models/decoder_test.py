"""However the tokens are fed, the decoder computes the same function."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder, kernels
from palign_jax.parallel import rules
from tests.models import tiny
from tests.models.tiny import CONFIG

CHANGES = dict(
    vocab_size=41,
    num_layers=3,
    embed_dim=18,
    num_heads=6,
    num_kv_heads=4,
    head_dim=16,
    mlp_dim=22,
    norm_eps=1e-2,
    rope_theta=2e4,
    rope_scaling=None,
    qkv_bias=False,
    qk_norm=False,
    tied=True,
)


@functools.partial(jax.jit, static_argnames=('config', 'dtype', 'remat'))
def forward(
    params, config, tokens, positions, segments, dtype=jnp.float32, remat='none'
):
  x = decoder.hidden(
      params, config, tokens, positions, segments, dtype=dtype, remat=remat
  )
  return decoder.logits(params, config, x)


def logits(params, config, tokens, **kwargs):
  return np.asarray(
      forward(params, config, tokens, tiny.places(tokens), None, **kwargs)
  )


@pytest.fixture(scope='module')
def params():
  return tiny.weights(CONFIG)


def test_every_field_is_tried():
  assert list(CHANGES) == [f.name for f in dataclasses.fields(CONFIG)]


@pytest.mark.parametrize('field', CHANGES)
def test_every_field_changes_the_output(params, field):
  changed = dataclasses.replace(CONFIG, **{field: CHANGES[field]})
  x = tiny.tokens(1, 7)
  got = logits(tiny.weights(changed), changed, x)
  want = logits(params, CONFIG, x)
  assert got.shape == (1, 7, changed.vocab_size)
  assert np.abs(got[..., :40] - want).max() > 1e-3


def test_a_row_does_not_know_its_neighbours(params):
  x = tiny.tokens(4, 70)
  want = logits(params, CONFIG, x)
  moved = logits(params, CONFIG, x[jnp.array([2, 0, 3, 1])])
  np.testing.assert_array_equal(moved[1], want[0])
  others = logits(params, CONFIG, x.at[1:].set(7))
  np.testing.assert_array_equal(others[0], want[0])
  alone = logits(params, CONFIG, x[:1])
  np.testing.assert_allclose(alone[0], want[0], rtol=0, atol=1e-5)


def test_padding_on_the_right_is_not_seen(params):
  x = tiny.tokens(1, 70)
  got = logits(params, CONFIG, x.at[:, 40:].set(0))
  np.testing.assert_array_equal(got[:, :40], logits(params, CONFIG, x)[:, :40])


def test_packed_sequences_are_as_alone(params):
  lengths = [30, 61, 9]  # The second crosses the blocks of attention.
  x = tiny.tokens(1, sum(lengths) + 5)
  positions = np.concatenate([np.arange(n) for n in [*lengths, 5]])
  segments = np.repeat([1, 2, 3, 0], [*lengths, 5])
  as_row = lambda v: jnp.asarray(v[None], jnp.int32)
  got = forward(params, CONFIG, x, as_row(positions), as_row(segments))
  assert np.isfinite(got).all()
  begin = 0
  for length in lengths:
    span = slice(begin, begin + length)
    alone = jnp.zeros((1, 61), jnp.int32).at[:, :length].set(x[:, span])
    want = logits(params, CONFIG, alone)[:, :length]
    np.testing.assert_allclose(got[:, span], want, rtol=0, atol=1e-4)
    begin += length


def test_a_trunk_that_is_not_seen_is_not_read(params):
  """New tokens may go far beyond what they attend to."""
  row, at = jnp.zeros(1, jnp.int32), jnp.array([16], jnp.int32)

  def values(content, **how):
    cache = decoder.new_cache(CONFIG, 1, 32, jnp.float32)
    grown = decoder.grow(
        decoder.unstack(params),
        CONFIG,
        tiny.tokens(1, 8),
        row,
        at,
        jax.tree.map(lambda x: x + jnp.float32(content), cache),
        backend=kernels.XLA,
        dtype=jnp.float32,
        **how,
    )
    return np.stack([v[0, :, 16:24] for _, v in grown])

  want = values(0.0, seen=jnp.array([0], jnp.int32))
  np.testing.assert_array_equal(values(np.nan, seen=row), want)
  assert np.isfinite(want).all() and np.isnan(values(np.nan)).any()
  seen = values(0.5, seen=at)
  np.testing.assert_array_equal(values(0.5), seen)  # As if nothing is said.
  assert np.abs(seen - want)[1:].max() > 1e-3


def test_recomputing_layers_changes_nothing(params):
  def loss(params, remat):
    x = tiny.tokens(1, 7)
    out = forward(params, CONFIG, x, tiny.places(x), None, remat=remat)
    return jnp.mean(out**2)

  plain = jax.value_and_grad(loss)(params, 'none')
  again = jax.value_and_grad(loss)(params, 'full')
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, again, plain)


def test_bfloat16_is_float32_but_for_rounding(params):
  x = tiny.tokens(2, 70)
  want = logits(params, CONFIG, x)
  half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
  got = logits(half, CONFIG, x, dtype=jnp.bfloat16)
  assert got.dtype == np.float32
  error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
  assert 1e-4 < error < 0.03


@pytest.mark.parametrize('tied', [False, True])
def test_axes_name_every_axis(tied):
  config = dataclasses.replace(CONFIG, tied=tied)
  shapes = decoder.abstract(config, jnp.float32)
  axes = decoder.logical_axes(config)
  size = dict(vocab=40, layers=2, embed=16, heads=4, kv_heads=2, head_dim=6)
  size['mlp'] = 20
  is_names = lambda x: isinstance(x, tuple)
  got = jax.tree.map(
      lambda names: tuple(size[n] for n in names), axes, is_leaf=is_names
  )
  assert got == jax.tree.map(lambda x: x.shape, shapes)
  assert size.keys() <= rules.RULES.keys()
