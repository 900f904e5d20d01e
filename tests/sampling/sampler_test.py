"""A completion follows from its request alone, whatever else is sampled."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors, keys
from palign_jax.models import decoder, lora
from palign_jax.parallel import memory, mesh as mesh_lib, rules
from palign_jax.sampling import buckets, loops, sampler as sampler_lib, steps
from palign_jax.text import tokenizer as tokenizer_lib
from tests import fakes, spread

CONFIG = fakes.model_config(embed_dim=16, mlp_dim=24)
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


def assert_greedy(params, requests, done, length):
  """Each token is the best of the full forward pass, within rounding."""
  texts = np.zeros((len(requests), length), np.int32)
  for text, r in zip(texts, requests, strict=True):
    tokens = done[r.id].tokens
    assert len(tokens) == r.max_tokens
    text[: len(r.tokens) + len(tokens)] = [*r.tokens, *tokens]
  logits = np.asarray(logits_of(params, texts))[:, :, :LIMIT]
  for row, r in zip(logits, requests, strict=True):
    tokens = list(done[r.id].tokens)
    best = row[len(r.tokens) - 1 :][: len(tokens)]
    chosen = best[np.arange(len(tokens)), tokens]
    np.testing.assert_allclose(chosen, best.max(1), atol=1e-4)


def test_greedy_is_the_full_forward(params):
  done = run(make(params, sampling=GREEDY, stop_ids=[]), REQUESTS)
  assert done.keys() == {r.id for r in REQUESTS}
  assert_greedy(params, REQUESTS, done, 160)


def test_long_prompts_are_read_in_chunks(params):
  """Of 128 and 64 tokens, while others are decoded."""
  lengths = (90, 700, 130, 257, 193, 640)
  long = [request(i, n, 6 + i) for i, n in enumerate(lengths)]
  sampler = make(
      params,
      sampling=GREEDY,
      stop_ids=[],
      num_rows=2,
      max_positions=1024,
      prefill_tokens=128,
  )
  assert_greedy(params, long, run(sampler, long), 768)
  reads = {p[3] for p in sampler.programs if p[0] == 'read'}
  assert reads == {64, 128}


@pytest.fixture(scope='module')
def together(params):
  return run(make(params), REQUESTS)


@pytest.mark.bits
def test_alone_is_the_same(params, together):
  sampler = make(params)
  for r in REQUESTS[:7]:
    assert run(sampler, [r]) == {r.id: together[r.id]}


@pytest.mark.bits
def test_order_and_company_do_not_matter(params, together):
  sampler = make(params)
  assert run(sampler, REQUESTS[::-1]) == together
  for seed in range(3):
    some = np.random.default_rng(seed).permutation(len(REQUESTS))[:9]
    strangers = [request(100 + 9 * seed + i, 30 + i, 60) for i in range(5)]
    done = run(sampler, [*strangers, *(REQUESTS[i] for i in some)])
    assert {f'r{i}': together[f'r{i}'] for i in some}.items() <= done.items()


def num_compiled():
  functions = (steps.read, steps.copy, steps.move, steps.decode, steps.admit)
  return sum(function._cache_size() for function in functions)


WIDE = dataclasses.replace(
    CONFIG, vocab_size=512, num_layers=1, embed_dim=512, tied=True
)


@pytest.mark.bits
def test_the_number_of_rows_does_not_matter(monkeypatch):
  """On a CPU: a run shrinks from 24 rows to 8, and one may begin with 8."""
  monkeypatch.setattr(buckets, 'SMALL', 0)
  params = decoder.init(WIDE, jax.random.key(0), jnp.float32)
  many = [request(i, 3 + i, 4 + 3 * i) for i in range(24)]
  settings = dict(config=WIDE, stop_ids=[], vocab_limit=512)
  mesh = fakes.one_device()
  placed = jax.device_put(params, mesh_lib.replicated(mesh))
  sampler = make(placed, num_rows=24, mesh=mesh, **settings)
  before = num_compiled()
  together = run(sampler, many)
  # None is compiled twice.
  assert num_compiled() - before == len(sampler.programs)
  sizes = {p[1] for p in sampler.programs if p[0] == 'decode'}
  assert sizes == {24, 16, 8}
  sampler, before = make(params, num_rows=8, **settings), num_compiled()
  few = run(sampler, many[::3])
  assert num_compiled() - before == len(sampler.programs)
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


class Characters(tokenizer_lib.Tokenizer):
  """Every token is a character: 'A' for 0, 'B' for 1, ..."""

  def __init__(self):
    pass

  def decode(self, ids):
    return ''.join(chr(ord('A') + i) for i in ids)


LETTERS = Characters()


def test_stream_is_run(params, together):
  sampler = make(params, tokenizer=LETTERS)
  for r in REQUESTS[:3]:
    pieces = list(sampler.stream(r))
    assert ''.join(pieces) == LETTERS.decode(together[r.id].tokens)
    assert len(pieces) > 1 or r.max_tokens < 5


def test_ends_before_the_first_stop_string(params, together):
  texts = {name: LETTERS.decode(c.tokens) for name, c in together.items()}
  longest = max(texts.values(), key=len)
  strings = (longest[20:23], longest[30:31])
  sampler = make(params, stop_strings=strings, tokenizer=LETTERS)
  done = run(sampler, REQUESTS)
  stopped = 0
  for r in REQUESTS:
    text, first = texts[r.id], len(texts[r.id])
    for string in strings:
      first = text.find(string) if 0 <= text.find(string) < first else first
    assert done[r.id].text == text[:first]
    assert done[r.id].tokens == together[r.id].tokens[:first]
    reason = 'stop' if first < len(text) else together[r.id].finish_reason
    assert done[r.id].finish_reason == reason
    stopped += first < len(text)
    assert ''.join(sampler.stream(r)) == text[:first]
  assert 3 < stopped < len(REQUESTS)


def test_stop_strings_that_cannot_be(params):
  with pytest.raises(errors.ConfigError, match='^stop_strings .* stops at on'):
    make(params, stop_strings=['x', ''], tokenizer=LETTERS)
  with pytest.raises(errors.ConfigError, match='^stop_strings .* a tokenizer'):
    make(params, stop_strings=['x'])


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


@contextlib.contextmanager
def watched():
  """Collects the programs of a run, and its caches."""
  texts, caches, donated = {}, [], []
  with pytest.MonkeyPatch.context() as patch:

    def watch(name):
      function, programs = getattr(steps, name), {}

      def call(*args, **static):
        key = str(jax.tree.map(jnp.shape, args))
        if key not in programs:
          programs[key] = function.lower(*args, **static).compile()
          texts[name, key] = programs[key].as_text()
          use = programs[key].memory_analysis()
          cache = args[0] if name == 'copy' else args[1]
          held = memory.per_device(cache)
          donated.append((name, use.alias_size_in_bytes >= held))
        out = programs[key](*args)
        caches[:] = [out[0] if name == 'decode' else out]
        return out

      patch.setattr(steps, name, call)

    for name in ('read', 'decode', 'copy'):
      watch(name)
    yield texts, caches, donated


MESHES = {'data': (8, 1, 1), 'all': (2, 2, 2), 'fsdp': (1, 4, 2)}
SHORT = [request(i, 3 + 2 * i, 30) for i in range(11)]
# Once more, for who shares a prompt.
SHORT += [
    dataclasses.replace(r, id=f'{r.id}b', key=keys.fold(9, i))
    for i, r in enumerate(SHORT)
]


@pytest.fixture(scope='module', params=MESHES.values(), ids=MESHES)
def spread_out(request, params):
  """A sampler on a mesh, what it drew, its programs and its cache."""
  sizes = dict(zip(mesh_lib.AXES, request.param, strict=False))
  mesh = mesh_lib.make(sizes)
  shardings = rules.tree_shardings(params, decoder.logical_axes(CONFIG), mesh)
  with watched() as (texts, caches, donated):
    sampler = make(jax.device_put(params, shardings), mesh=mesh, num_rows=8)
    done = run(sampler, SHORT)
    return mesh, sampler, done, texts, donated, caches[0]


@pytest.fixture(scope='module')
def on_one_device(params):
  return run(make(params, num_rows=8), SHORT)


def test_a_mesh_draws_the_same(spread_out, on_one_device):
  assert spread_out[2] == on_one_device


def test_nothing_is_replicated_by_accident(spread_out):
  mesh, sampler, *_, cache = spread_out
  spread.weights_are_split(sampler._params, CONFIG, mesh)
  spread.cache_is_split(cache, mesh)


def test_no_device_sends_what_a_cache_holds(spread_out):
  *_, texts, _, cache = spread_out
  assert {name for name, _ in texts} >= {'read', 'decode'}
  for text in texts.values():
    spread.no_cache_is_sent(text, cache, block=128)


def test_caches_are_donated(spread_out):
  *_, donated, _ = spread_out
  assert {name for name, _ in donated} >= {'read', 'decode'}
  assert all(is_donated for _, is_donated in donated)


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


def spoilt(params, *ids):
  """Returns weights with which nobody can read these tokens."""
  table = params['embed']['table'].at[jnp.array(ids)].set(jnp.nan)
  return params | {'embed': {'table': table}}


def test_logits_that_are_not_finite(params):
  fine = sampler_lib.Request('fine', (1, 2, 3), keys.fold(3), 1)
  bad = sampler_lib.Request('bad', (1, 5, 3), keys.fold(3), 4)
  sampler = make(spoilt(params, 5))
  assert run(sampler, [fine]).keys() == {'fine'}
  with pytest.raises(
      errors.DataError, match='^request bad: the logits of token 1 .* finite'
  ):
    run(sampler, [fine, bad])


def test_who_has_ended_may_draw_what_is_not_finite(params):
  readable = lambda tokens: tuple(t + (t in (7, 9)) for t in tokens)
  some = [
      dataclasses.replace(r, tokens=readable(r.tokens)) for r in REQUESTS[2:6]
  ]
  want = run(make(params), some)
  assert {'stop'} <= {c.finish_reason for c in want.values()}
  assert run(make(spoilt(params, 7, 9)), some) == want


@pytest.mark.parametrize('name', ['new_cache', 'read', 'decode'])
def test_no_memory_left(params, monkeypatch, name):
  def fails_with(text):
    def fail(*args, **static):
      raise jax.errors.JaxRuntimeError(text)

    monkeypatch.setattr(steps, name, fail)
    return make(params)

  sampler = fails_with('RESOURCE_EXHAUSTED: Out of memory.\nAnd more.')
  with pytest.raises(
      errors.ConfigError,
      match=r'^config.compute.num_rows: .* 4 rows .*\(RESOURCE_EXHAUSTED: Out'
      r' of memory.\); lower it, config.compute.prefill_tokens or [^\n]*$',
  ):
    run(sampler, REQUESTS[:2])
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL: else'):
    run(fails_with('INTERNAL: else'), REQUESTS[:2])


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
