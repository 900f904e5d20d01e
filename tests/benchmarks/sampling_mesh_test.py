"""How far apart two tokens were where a mesh draws another than one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import sampling_mesh
from palign_jax.core import keys
from palign_jax.models import decoder
from palign_jax.sampling import noise, sampler as sampler_lib
from tests import fakes

CONFIG = fakes.model_config()


@pytest.fixture(autouse=True)
def fixture_small(monkeypatch):
  small = {
      '_CONFIG': CONFIG,
      '_ROWS': 2,
      '_TOKENS': 12,
      '_MESHES': ((8, 1, 1),),
  }
  for name, value in small.items():
    monkeypatch.setattr(sampling_mesh, name, value)


def scores(params, request, drawn):
  """Of every token that may come next: the sampler takes the best."""
  text = jnp.asarray([[*request.tokens, *drawn]], jnp.int32)
  places = jnp.arange(text.shape[1], dtype=jnp.int32)[None]
  x = decoder.hidden(params, CONFIG, text, places, None, dtype=jnp.float32)
  ids = jnp.arange(CONFIG.vocab_size, dtype=jnp.int32)[None]
  step = jnp.asarray([len(drawn)], jnp.int32)
  e = noise.exponential(jnp.asarray(request.key)[None], step, ids)[0]
  logits = decoder.logits(params, CONFIG, x)[0, -1]
  return np.asarray(logits, np.float64) - np.log(np.asarray(e, np.float64))


@pytest.mark.parametrize('at', [0, 5, 11])
def test_the_gap_is_that_at_the_first_difference(at):
  params = decoder.init(CONFIG, jax.random.key(0), jnp.float32)
  request = sampler_lib.Request('r', (3, 1, 4), keys.fold(0, 'mesh'), 12)
  one = sampling_mesh.draw(params, None, [request])['r']
  found = scores(params, request, one[:at])
  best, second = np.argsort(-found)[:2].tolist()
  assert one[at] == best
  # What comes later differs as well, and does not count.
  other = (*one[:at], second, *((t + 1) % 64 for t in one[at + 1 :]))
  want = pytest.approx(found[best] - found[second], abs=1e-4)
  assert sampling_mesh.gap(params, request, one, other) == want
  assert sampling_mesh.gap(params, request, other, one) == want


def test_rows_tell_how_many_differ_and_how_much(monkeypatch):
  draw, alone, gap, gaps = sampling_mesh.draw, {}, sampling_mesh.gap, []

  def other(tokens, at):
    return (*tokens[:at], (tokens[at] + 1) % 64, *tokens[at + 1 :])

  def fake(params, mesh, requests):
    if mesh is None:
      alone.update(draw(params, None, requests))
      return alone
    return alone | {'1': other(alone['1'], 7), '2': other(alone['2'], 3)}

  def noted(*args):
    gaps.append(gap(*args))
    return gaps[-1]

  monkeypatch.setattr(sampling_mesh, 'draw', fake)
  monkeypatch.setattr(sampling_mesh, 'gap', noted)
  (row,) = sampling_mesh.run()
  assert (row['rows'], row['share_of_rows_that_differ']) == (4, 0.5)
  assert len(gaps) == 2 and row['largest_gap_nats'] == max(gaps) > 0
  assert row['mesh'] == {'data': 8, 'fsdp': 1, 'tensor': 1}
  assert {'commit', 'device', 'versions'} <= row.keys()
