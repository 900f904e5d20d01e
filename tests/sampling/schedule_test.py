"""Nine of ten row-steps are useful, though nobody knows the lengths.

The devices are left out: what a call would do is counted.
"""

from absl import logging
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.sampling import buckets, sampler as sampler_lib, steps, weights
from tests import fakes

CONFIG = fakes.model_config(vocab_size=512, num_layers=1, embed_dim=512)


@pytest.fixture(name='calls')
def fixture_calls(monkeypatch):
  calls = []

  def decode(params, cache, seen, *args, **static):
    *_, budgets, keys, _, leave = args
    budgets = np.asarray(budgets)
    live, num = np.sum(budgets > 0), 0
    while True:
      left = np.sum(budgets > num)
      if not left or live - left >= leave:
        break
      num += 1
    calls.append(('decode', len(keys)))
    out = np.zeros((len(keys), steps.STEPS), np.int32)
    return cache, seen, out, num

  def read(params, cache, tokens, *args, **static):
    calls.append(('read', tokens.shape[1]))
    return cache

  monkeypatch.setattr(buckets, 'SMALL', 0)
  monkeypatch.setattr(weights, 'pack', lambda params, platform: params)
  monkeypatch.setattr(steps, 'new_cache', lambda **static: None)
  monkeypatch.setattr(steps, 'read', read)
  monkeypatch.setattr(steps, 'copy', lambda cache, *args, **static: cache)
  monkeypatch.setattr(steps, 'move', lambda *args, **static: args[:2])
  monkeypatch.setattr(steps, 'decode', decode)
  return calls


def sampler(num_rows):
  return sampler_lib.Sampler(
      {},
      CONFIG,
      mesh=None,
      dtype=jnp.float32,
      num_rows=num_rows,
      stop_ids=[],
      vocab_limit=512,
      max_positions=32_768,
      sampling=sampler_lib.SamplingConfig(
          temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0
      ),
      loop_rule=None,
      prefill_tokens=4096,
  )


def request(name, length, max_tokens):
  seed = sum(map(ord, name.split('/')[0]))
  tokens = np.random.default_rng(seed).integers(0, 512, length).tolist()
  key = np.zeros(2, np.uint32)
  return sampler_lib.Request(name, tuple(tokens), key, max_tokens)


@pytest.mark.parametrize('num_rows', [32, 64])
def test_most_of_what_is_computed_is_asked_for(calls, num_rows):
  rng = np.random.default_rng(1)
  lengths = np.clip(np.exp(rng.normal(np.log(90), 0.87, (64, 4))), 16, 512)
  requests = [
      request(f'{chr(200 + i)}/{j}', 100 + i, int(lengths[i, j]))
      for i in range(64)
      for j in range(4)
  ]
  s = sampler(num_rows)
  assert len(list(s.run(requests))) == 256
  assert s.useful > 0.9
  reads = sum(size for name, size in calls if name == 'read')
  # Each prompt once; padding is at most a third.
  assert reads <= 4 / 3 * sum(99 + i for i in range(64)) + 64 * 64
  assert len({call for call in calls if call[0] == 'decode'}) <= 6
  assert len(s.programs) <= 40


def test_decoding_rows_do_not_wait_for_long_prompts(calls):
  short = [request(f'{chr(200 + i)}/0', 50, 1500) for i in range(6)]
  long = [request(f'{chr(300 + i)}/0', 20_000, 16) for i in range(2)]
  list(sampler(8).run([*short, *long]))
  waited = longest = 0
  begun = calls.index(('decode', 8))
  for name, size in calls[begun:]:
    waited = 0 if name == 'decode' else waited + size
    longest = max(longest, waited)
  assert 512 <= longest < 1024 + 512


def test_programs_are_those_of_the_table(calls, caplog):
  """Few, whatever is asked for; what is asked for again needs no other."""
  logging.set_verbosity(logging.INFO)
  rng, s, longest = np.random.default_rng(2), sampler(32), 6000

  def varied(num):
    lengths = rng.integers(1, longest, num).tolist()
    limits = rng.integers(1, 600, num).tolist()
    return [
        request(f'{chr(200 + i)}/0', *both)
        for i, both in enumerate(zip(lengths, limits, strict=True))
    ]

  batches = [varied(num) for num in (3, 9, 40)]
  for batch in batches:
    assert len(list(s.run(batch))) == len(batch)
    said = f'Sampling: {len(s.programs)} programs compiled or loaded, '
    assert said + f'{100 * s.useful:.0f}% of the row-steps' in caplog.text
    caplog.clear()
  sizes = set(buckets.num_rows(32, 1, 512))
  rooms = {buckets.capacity(n) for n in range(1, longest + 600 + 600)}
  for name, size, room, *rest in s.programs:
    assert size in sizes and room in rooms
    if name == 'read':
      assert rest[0] in buckets.CHUNKS
    elif name == 'move':  # Of rows or of slots, never of both.
      assert (rest[0] == size) != (rest[1] == room)
    else:
      assert name in ('decode', 'copy') and not rest
  each = 2 + len(buckets.CHUNKS) + len(sizes) + len(rooms)
  assert len(s.programs) <= len(sizes) * len(rooms) * each
  num = len(s.programs)
  for batch in batches[:2]:
    list(s.run(batch))
    assert not caplog.text  # Nothing new: nothing is said.
  assert len(s.programs) == num
