"""A trace of 32,000 tokens is judged as its full reading says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.judging import search, trunk_scorer
from palign_jax.models import decoder
from palign_jax.parallel import memory
from tests import fakes

# One head: attention is all that such a text costs a model as small.
CONFIG = fakes.model_config(
    embed_dim=16, num_heads=1, num_kv_heads=1, mlp_dim=16, qk_norm=True
)
LENGTH = 32_000
ANCHORS = (100, 4_001, 8_190, 12_000, 16_384, 20_001, 24_576, 31_000, LENGTH)
TAIL = 3


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.4, x.shape).astype(np.float32))
  return jax.tree.map(draw, decoder.abstract(CONFIG, jnp.dtype('float32')))


def read_whole(params, text, ends, pairs):
  """Returns the margins after the first `ends` tokens, from one pass."""

  @jax.jit
  def run(params, tokens, ends, pairs):
    places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    x = decoder.hidden(params, CONFIG, tokens, places, None, dtype=jnp.float32)
    return decoder.margins(params, CONFIG, x[0, ends - 1], pairs)

  return np.asarray(run(params, text[None], ends, pairs))


@pytest.mark.slow
def test_32k_tokens_by_curve_and_by_halves(params):
  rng = np.random.default_rng(1)
  # Tails go on as the text does, so that one pass reads every prompt.
  text = rng.integers(1, 64, LENGTH + TAIL).astype(np.int32)
  pairs = np.stack([rng.permutation(64)[:2] for _ in ANCHORS]).astype(np.int32)
  want = read_whole(params, text, np.array(ANCHORS, np.int32) + TAIL, pairs)
  probes = [
      trunk_scorer.Probe(
          0, anchor, text[anchor : anchor + TAIL].tolist(), *pair
      )
      for anchor, pair in zip(ANCHORS, pairs.tolist(), strict=True)
  ]
  scorer = trunk_scorer.TrunkScorer(
      params,
      CONFIG,
      mesh=fakes.one_device(),
      dtype=jnp.float32,
      budget=memory.GIB,
      judge_tokens=2048,
  )
  assert scorer.groups([LENGTH]) == [[0]]
  batch = scorer.open([text[:LENGTH].tolist()])

  def judge(asked):
    margins = batch.score([probes[probe.length - 1] for probe in asked])
    return [search.Verdict(m > 0, margin=m) for m in map(float, margins)]

  halves = search.drive({'it': search.binary(len(ANCHORS))}, judge)['it']
  curve = search.drive({'it': search.curve(len(ANCHORS))}, judge)['it']
  assert 2 < len(halves.verdicts) < len(curve.verdicts) == len(ANCHORS)
  for found in (halves, curve):
    for n, verdict in found.verdicts.items():
      assert verdict.margin == pytest.approx(want[n - 1], abs=1e-4)
  assert np.std(want) > 0.1
  # The trunk was read once, for both.
  tails = TAIL * (len(halves.verdicts) + len(curve.verdicts))
  assert scorer.num_tokens == LENGTH + tails
