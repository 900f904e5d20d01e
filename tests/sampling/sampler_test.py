"""A completion follows from its request alone, whatever else is sampled."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors, keys
from palign_jax.models import config as config_lib, decoder, lora
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.sampling import buckets, loops, sampler as sampler_lib

CONFIG = config_lib.ModelConfig(
    vocab_size=64,
    num_layers=2,
    embed_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_dim=24,
    norm_eps=1e-6,
    rope_theta=1e4,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
)
LIMIT = 58
SAMPLED = sampler_lib.SamplingConfig(
    temperature=0.9, top_p=0.95, top_k=0, repetition_penalty=1.05
)
GREEDY = sampler_lib.SamplingConfig(
    temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0
)


@pytest.fixture(scope='module')
def params():
  rng = np.random.default_rng(0)
  shapes = decoder.abstract(CONFIG, jnp.float32)
  # Large weights: tokens depend on what was read.
  return jax.tree.map(
      lambda x: jnp.asarray(rng.normal(0, 0.5, x.shape), x.dtype), shapes
  )


def make(params, config=CONFIG, **changes):
  settings = dict(
      mesh=None,
      dtype=jnp.float32,
      num_rows=4,
      stop_ids=[7, 9],
      vocab_limit=LIMIT,
      max_positions=512,
      sampling=SAMPLED,
      loop_rule=None,
      prefill_tokens=1 << 10,
  )
  return sampler_lib.Sampler(params, config, **(settings | changes))


def request(i, length, max_tokens):
  prompt = np.random.default_rng(i).integers(0, LIMIT, length).tolist()
  return sampler_lib.Request(
      f'r{i}', tuple(prompt), keys.fold(3, 'test', i), max_tokens
  )


LENGTHS = [(1, 70), (31, 1), (32, 40), (33, 60), (40, 33), (60, 64), (64, 5)]
REQUESTS = [
    request(i, *LENGTHS[i % len(LENGTHS)]) for i in range(2 * len(LENGTHS))
]


def run(sampler, requests):
  return {c.id: c for c in sampler.run(requests)}


@jax.jit
def logits_of(params, tokens):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden = decoder.hidden(
      params, CONFIG, tokens, positions, None, dtype=jnp.float32
  )
  return decoder.logits(params, CONFIG, hidden)


def test_greedy_is_the_full_forward(params):
  done = run(make(params, sampling=GREEDY, stop_ids=[]), REQUESTS)
  assert len(done) == len(REQUESTS)
  texts = np.zeros((len(REQUESTS), 160), np.int32)
  for text, r in zip(texts, REQUESTS, strict=True):
    tokens = done[r.id].tokens
    assert len(tokens) == r.max_tokens
    text[: len(r.tokens) + len(tokens)] = [*r.tokens, *tokens]
  logits = np.asarray(logits_of(params, texts))[:, :, :LIMIT]
  for row, r in zip(logits, REQUESTS, strict=True):
    tokens = list(done[r.id].tokens)
    best = row[len(r.tokens) - 1 :][: len(tokens)]
    # Each token is the best one, or tied with it within rounding.
    chosen = best[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(chosen, best.max(1), atol=1e-4)


@pytest.fixture(scope='module')
def together(params):
  return run(make(params), REQUESTS)


def test_alone_is_the_same(params, together):
  sampler = make(params)
  for r in REQUESTS[:7]:
    assert run(sampler, [r]) == {r.id: together[r.id]}


def test_order_and_company_do_not_matter(params, together):
  sampler = make(params)
  assert run(sampler, REQUESTS[::-1]) == together
  for seed in range(3):
    some = np.random.default_rng(seed).permutation(len(REQUESTS))[:9]
    strangers = [request(100 + 9 * seed + i, 30 + i, 60) for i in range(5)]
    done = run(sampler, [*strangers, *(REQUESTS[i] for i in some)])
    assert {f'r{i}': together[f'r{i}'] for i in some}.items() <= done.items()


WIDE = dataclasses.replace(
    CONFIG, vocab_size=512, num_layers=1, embed_dim=512, tied=True
)


def test_the_number_of_rows_does_not_matter(monkeypatch):
  """On a CPU: a run shrinks from 24 rows to 8, and one may begin with 8."""
  monkeypatch.setattr(buckets, 'SMALL', 0)
  params = decoder.init(WIDE, jax.random.key(0), jnp.float32)
  many = [request(i, 3 + i, 4 + 3 * i) for i in range(24)]
  settings = dict(config=WIDE, stop_ids=[], vocab_limit=512)
  sampler = make(params, num_rows=24, **settings)
  together = run(sampler, many)
  sizes = {p[1] for p in sampler.programs if p[0] == 'decode'}
  assert sizes == {24, 16, 8}
  few = run(make(params, num_rows=8, **settings), many[::3])
  assert few == {r.id: together[r.id] for r in many[::3]}


def test_samples_of_a_prompt_are_as_if_alone(params):
  prompt = request(0, 90, 30)
  samples = [
      dataclasses.replace(prompt, id=f's{i}', key=keys.fold(5, i))
      for i in range(7)
  ]
  sampler = make(params)
  together = run(sampler, samples)
  assert len({c.tokens for c in together.values()}) > 3
  for r in samples[::3]:
    assert run(make(params), [r]) == {r.id: together[r.id]}


def test_the_cache_grows_with_its_rows(params, monkeypatch):
  r = request(50, 40, 200)
  want = run(make(params, stop_ids=[]), [r])
  monkeypatch.setattr(sampler_lib, '_AHEAD', 16)
  sampler = make(params, stop_ids=[])
  assert run(sampler, [r]) == want
  capacities = {p[2] for p in sampler.programs if p[0] == 'decode'}
  assert capacities == {128, 256}


def test_counts_are_of_what_was_computed(params):
  sampler = make(params, stop_ids=[])
  done = run(sampler, REQUESTS)
  assert sampler.tokens == sum(len(c.tokens) for c in done.values())
  assert sampler.row_steps == 4 * sampler.num_steps
  assert 0.6 < sampler.useful <= 1


def test_long_prompts_are_read_in_chunks(params, together):
  done = run(make(params, prefill_tokens=64), REQUESTS)
  # Another chunk is another rounding, not another model.
  same = sum(done[i].tokens == c.tokens for i, c in together.items())
  assert done.keys() == together.keys() and same >= 12


def test_stream_is_run(params, together):
  sampler = make(params)
  for r in REQUESTS[:3]:
    assert tuple(sampler.stream(r)) == together[r.id].tokens


def test_ends_before_a_stop_token_or_at_the_limit(params):
  free = run(make(params, sampling=GREEDY, stop_ids=[]), REQUESTS)
  r = next(r for r in REQUESTS if len(set(free[r.id].tokens)) > 5)
  tokens = free[r.id].tokens
  stop = tokens[6] if tokens[6] not in tokens[:6] else tokens[0]
  sampler = make(params, sampling=GREEDY, stop_ids=[LIMIT, stop])
  want = tokens[: tokens.index(stop)]
  assert run(sampler, [r])[r.id] == sampler_lib.Completion(r.id, want, 'stop')
  # The last token that is allowed may be the stop token.
  short = dataclasses.replace(r, max_tokens=len(want) + 1)
  assert run(sampler, [short])[r.id].finish_reason == 'stop'
  if want:
    shorter = dataclasses.replace(r, max_tokens=len(want))
    done = run(sampler, [shorter])[r.id]
    assert done == sampler_lib.Completion(r.id, want, 'length')


def test_a_loop_ends_where_the_rule_first_holds(params):
  rule = loops.LoopRule(max_period=8, min_repeats=3, min_span=12)
  r = request(0, 20, 90)
  params = jax.tree.map(lambda x: x / 3, params)  # It repeats itself then.
  tokens = run(make(params, sampling=GREEDY, stop_ids=[]), [r])[r.id].tokens
  end = loops.Detector(rule).push(np.array(tokens))
  assert end is not None and end < 90
  want = sampler_lib.Completion(r.id, tokens[:end], 'loop')
  sampler = make(params, sampling=GREEDY, stop_ids=[], loop_rule=rule)
  assert run(sampler, [r]) == {r.id: want}
  assert tuple(sampler.stream(r)) == want.tokens


def test_keys_matter(params, together):
  r = dataclasses.replace(REQUESTS[0], key=keys.fold(4, 'test', 0))
  assert run(make(params), [r])[r.id].tokens != together[r.id].tokens


def test_adapters_are_applied(params):
  adapters = lora.init(CONFIG, 2, jax.random.key(1))
  adapters = jax.tree.map(lambda x: x + 0.4, adapters)
  sampling = dict(sampling=GREEDY, stop_ids=[])
  joined = make(lora.join(params, adapters), lora_scale=0.5, **sampling)
  merged = make(lora.merge(params, adapters, 0.5), **sampling)
  base, r = make(params, **sampling), request(1, 40, 20)
  assert run(joined, [r]) == run(merged, [r]) != run(base, [r])


@pytest.mark.parametrize(
    'sizes', [(8, 1, 1), (2, 2, 2), (1, 4, 2)], ids=['data', 'all', 'fsdp']
)
def test_a_mesh_draws_the_same(params, sizes):
  mesh = mesh_lib.make(dict(zip(mesh_lib.AXES, sizes, strict=False)))
  shardings = rules.tree_shardings(params, decoder.logical_axes(CONFIG), mesh)
  spread = jax.device_put(params, shardings)
  short = [request(i, 3 + 2 * i, 30) for i in range(11)]
  want = run(make(params, num_rows=8), short)
  assert run(make(spread, mesh=mesh, num_rows=8), short) == want


def test_no_requests(params):
  assert not run(make(params), [])


def test_requests_that_cannot_be(params):
  sampler = make(params)
  with pytest.raises(errors.ConfigError, match='r0: .*exceed the 512'):
    run(sampler, [request(1, 5, 5), request(0, 500, 13)])
  with pytest.raises(errors.ConfigError, match='a prompt of 0 tokens'):
    run(sampler, [request(0, 0, 5)])
  with pytest.raises(errors.ConfigError, match='max_tokens 0; both must be'):
    run(sampler, [request(0, 3, 0)])


def test_heads_that_do_not_split(params):
  mesh = mesh_lib.make({'data': 1, 'fsdp': 2, 'tensor': 4})
  with pytest.raises(
      errors.ConfigError, match='mesh.tensor is 4 .* 2 KV heads'
  ):
    make(params, mesh=mesh)


def test_rows_that_do_not_split(params):
  mesh = mesh_lib.make({'data': 4, 'fsdp': 2, 'tensor': 1})
  with pytest.raises(errors.ConfigError, match='12 rows per batch .* 8 groups'):
    make(params, mesh=mesh, num_rows=12)
