"""Nine of ten row-steps are useful, though nobody knows the lengths.

The devices are left out: what a call would do is counted.
"""

import math

from absl import logging
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import buckets, sampler as sampler_lib, steps, weights
from tests import fakes

CONFIG = fakes.model_config(vocab_size=512, num_layers=1, embed_dim=512)


class Calls(list):
  """What was called, and how many steps each call of `decode` took."""


@pytest.fixture(name='calls')
def fixture_calls(monkeypatch):
  calls, taken = Calls(), []
  calls.steps = taken

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
    taken.append(num)
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


def sampler(num_rows, mesh=None):
  return sampler_lib.Sampler(
      {},
      CONFIG,
      mesh=mesh,
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
  assert np.mean(calls.steps) > 4  # Steps in a call.
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


def test_devices_with_nothing_to_read_see_nothing(calls, monkeypatch):
  reads = []

  def read(params, cache, tokens, rows, begins, seen, **static):
    reads.append([np.asarray(x) for x in (tokens, begins, seen)])
    return cache

  monkeypatch.setattr(steps, 'read', read)
  requests = [request('a/0', 3000, 16), request('b/0', 1000, 16)]
  list(sampler(8, mesh_lib.make({'data': 8})).run(requests))
  counts = set()
  for tokens, begins, seen in reads:
    idle = ~tokens.any(axis=1)
    counts.add(int(idle.sum()))
    assert not seen[idle].any()
    assert (begins[idle] > 3000).all()  # Where nobody's tokens are.
    assert (seen[~idle] == begins[~idle]).all()
  assert counts == {6, 7}


@pytest.mark.parametrize(
    'prompts, answers, num_samples, unused',
    [
        ((20, 165), (16, 513), 1, 0),
        ((1, 6000), (1, 600), 1, 0),
        ((1, 20_000), (8000, 8001), 1, 0),
        ((50, 51), (7000, 8001), 1, 3),
        ((20, 165), (16, 513), 4, 0),
    ],
)
def test_a_run_compiles_what_its_way_needs(
    calls, prompts, answers, num_samples, unused
):
  """A cache's way is to more room, at least twice as much, or fewer rows."""
  rng, s = np.random.default_rng(5), sampler(32)
  requests = [
      request(f'{chr(200 + i)}/{j}', length, int(rng.integers(*answers)))
      for i, length in enumerate(rng.integers(*prompts, 100).tolist())
      for j in range(num_samples)
  ]
  assert len(list(s.run(requests))) == len(requests)
  sizes, rooms = ({p[i] for p in s.programs} for i in (1, 2))
  chunks = {p[3] for p in s.programs if p[0] == 'read'}
  copies = int(num_samples > 1)
  R, Z = 1 + math.ceil(math.log2(max(rooms) / min(rooms))), len(sizes)
  # A program to decode at each place of the way and one to move on; rows are
  # read and copied before they get fewer.
  most = (R + Z - 1) + (R + Z - 2) + R * (len(chunks) + copies)
  assert most - unused <= len(s.programs) <= most
  assert len(rooms) <= R and Z <= 4 and chunks <= {*buckets.CHUNKS}


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
  num = len(s.programs)
  for batch in batches[:2]:
    list(s.run(batch))
    assert not caplog.text  # Nothing new: nothing is said.
  assert len(s.programs) == num
