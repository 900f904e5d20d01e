"""A score is that of a plain forward pass, whoever else is scored with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.judging import scorer
from palign_jax.models import decoder, kernels
from palign_jax.parallel import mesh as mesh_lib
from tests import fakes

CONFIG = fakes.model_config(tied=True)


def make_params():
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape).astype(np.float32))
  return jax.tree.map(draw, decoder.abstract(CONFIG, jnp.dtype('float32')))


PARAMS = make_params()


def make(max_tokens=1024, **mesh):
  sizes = {'data': 1, 'fsdp': 1, 'tensor': 1} | mesh
  if mesh:
    grid = mesh_lib.make(sizes)
  else:
    grid = fakes.one_device()
  return scorer.Scorer(
      PARAMS, CONFIG, mesh=grid, dtype=jnp.float32, max_tokens=max_tokens
  )


def question(number, length):
  rng = np.random.default_rng(number)
  tokens = rng.integers(1, CONFIG.vocab_size, length).tolist()
  return scorer.Question(tokens, number % 64, (number + 7) % 64)


def direct(q):
  """From the logits of a forward pass of this text alone, unpadded."""
  tokens = jnp.asarray(q.tokens, jnp.int32)[None]
  positions = jnp.arange(len(q.tokens), dtype=jnp.int32)[None]
  x = decoder.hidden(PARAMS, CONFIG, tokens, positions, None, dtype=jnp.float32)
  log_p = jax.nn.log_softmax(decoder.logits(PARAMS, CONFIG, x)[0, -1])
  return float(log_p[q.yes] - log_p[q.no])


QUESTIONS = [question(i, n) for i, n in enumerate([5, 64, 65, 96, 97, 40, 150])]


@pytest.fixture(scope='module')
def alone():
  """Each question's score, when it is the only one."""
  return np.array([make().score([q])[0] for q in QUESTIONS])


def test_width_is_the_next_of_a_few():
  lengths = [1, 64, 65, 96, 97, 128, 129, 193, 257, 30_000]
  widths = [64, 64, 96, 96, 128, 128, 192, 256, 384, 32_768]
  assert [scorer.width(n) for n in lengths] == widths


def test_equals_a_direct_forward_pass(alone):
  for i in (0, 2, 6):
    np.testing.assert_allclose(alone[i], direct(QUESTIONS[i]), atol=1e-5)
  assert np.std(alone) > 0.1  # It says something.


@pytest.mark.bits
def test_neighbours_order_and_padding_change_no_bit(alone):
  together = make().score(QUESTIONS)
  assert together.dtype == np.float32
  np.testing.assert_array_equal(together, alone)
  order = np.random.default_rng(0).permutation(len(QUESTIONS))
  mixed = make().score([QUESTIONS[i] for i in order] * 3)
  np.testing.assert_array_equal(mixed, np.tile(alone[order], 3))


def test_a_smaller_bound_on_tokens_is_rounding_at_most(alone):
  for max_tokens in (1, 200):  # 1: a row is always computed.
    got = make(max_tokens).score(QUESTIONS)
    np.testing.assert_allclose(got, alone, atol=1e-5)


def test_a_batch_is_bounded_in_tokens():
  shapes = []
  one = make(max_tokens=256)
  margins = one._margins

  def spy(params, tokens, *rest):
    shapes.append(tokens.shape)
    return margins(params, tokens, *rest)

  one._margins = spy
  advanced = []
  one.score(QUESTIONS, advanced.append)
  assert shapes == [(4, 64), (2, 96), (2, 128), (1, 192)]
  assert sum(advanced) == len(QUESTIONS)


@pytest.mark.parametrize('mesh', [{'data': 8}, {'fsdp': 4, 'tensor': 2}])
def test_eight_devices_say_what_one_says(alone, mesh):
  got = make(**mesh).score(QUESTIONS)
  np.testing.assert_allclose(got, alone, atol=1e-5)


def test_a_long_row_takes_memory_in_proportion_to_its_length():
  def bytes_of(length):
    args = (
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS),
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        jax.ShapeDtypeStruct((1, 2), jnp.int32),
    )
    program = scorer._margins.lower(
        *args,
        config=CONFIG,
        dtype=jnp.dtype('float32'),
        lora_scale=0.0,
        backend=kernels.XLA,
    )
    return program.compile().memory_analysis().temp_size_in_bytes

  length = 32_768
  # The scores of one head are length**2; the logits length * vocab_size.
  assert bytes_of(length) < length**2 * 4 / 16
  assert bytes_of(length) < 2.5 * bytes_of(length // 2)


def test_no_questions():
  assert make().score([]).shape == (0,)
