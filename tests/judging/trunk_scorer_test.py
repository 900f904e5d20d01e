"""A fork's score is that of its whole text, read alone."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.judging import (
    programs as programs_lib,
    scorer as full,
    trunk_scorer,
)
from palign_jax.models import decoder
from palign_jax.parallel import memory, mesh as mesh_lib, rules
from tests import fakes, spread

CONFIG = fakes.model_config(tied=True)
LENGTHS = (5, 130, 700, 301, 256)


def make_params(config=CONFIG):
  rng = np.random.default_rng(1)
  draw = lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape).astype(np.float32))
  return jax.tree.map(draw, decoder.abstract(config, jnp.dtype('float32')))


PARAMS = make_params()


def make(params=PARAMS, config=CONFIG, mesh=None, **settings):
  settings = dict(dtype=jnp.float32, budget=None, judge_tokens=256) | settings
  mesh = mesh or fakes.one_device()
  return trunk_scorer.TrunkScorer(params, config, mesh=mesh, **settings)


def trunk(number, length):
  rng = np.random.default_rng([number, length])
  return rng.integers(1, CONFIG.vocab_size, length).tolist()


TRUNKS = [trunk(i, n) for i, n in enumerate(LENGTHS)]


def make_probes(per_trunk, trunks=TRUNKS):
  rng = np.random.default_rng(2)
  probes = []
  for i, tokens in enumerate(trunks):
    for anchor in rng.integers(0, len(tokens) + 1, per_trunk).tolist():
      tail = rng.integers(1, 64, rng.integers(1, 9)).tolist()
      yes, no = rng.choice(64, 2, replace=False).tolist()
      probes.append(trunk_scorer.Probe(i, anchor, tail, yes, no))
  return probes


def on(trunk, probe):
  return dataclasses.replace(probe, trunk=trunk)


PROBES = make_probes(19)


def reread(probes, trunks=TRUNKS, dtype=jnp.float32, params=PARAMS):
  """By the definition: every text is read anew, whole."""
  one = full.Scorer(
      params, CONFIG, mesh=fakes.one_device(), dtype=dtype, max_tokens=8192
  )
  text = lambda p: [*trunks[p.trunk][: p.anchor], *p.tokens]
  return one.score([full.Question(text(p), p.yes, p.no) for p in probes])


@pytest.fixture(scope='module')
def want():
  return reread(PROBES)


@pytest.fixture(scope='module')
def curve():
  """All forks of all trunks in one call."""
  return make().open(TRUNKS).score(PROBES)


def test_a_curve_equals_full_reading(want, curve):
  assert curve.dtype == np.float32 and np.std(curve) > 0.1
  np.testing.assert_allclose(curve, want, atol=1e-5)


def test_so_does_a_trunk_grown_as_far_as_each_probe_needs(want):
  batch = make().open(TRUNKS)
  order = np.random.default_rng(3).permutation(len(PROBES))[:30]
  got = [batch.score([PROBES[i]])[0] for i in order]
  np.testing.assert_allclose(got, want[order], atol=1e-5)


def test_a_trunk_is_read_once_and_only_as_far_as_needed():
  scorer = make()
  batch = scorer.open(TRUNKS)
  tail = [1, 2, 3]
  probe = lambda at: trunk_scorer.Probe(2, at, tail, 1, 2)
  counted = []
  for anchor in (150, 100, 256, 257, 700):
    before = scorer.num_tokens
    batch.score([probe(anchor)])
    counted.append(scorer.num_tokens - before - len(tail))
  # Chunks of 128: to 256, none, none, to 384, to the end.
  assert counted == [256, 0, 0, 128, 316]


@pytest.mark.bits
def test_company_order_and_room_change_no_bit(curve):
  reverse = [on(4 - p.trunk, p) for p in PROBES]
  batch = make().open(TRUNKS[::-1])
  mixed = np.random.default_rng(4).permutation(len(PROBES))
  got = batch.score([reverse[i] for i in mixed])
  np.testing.assert_array_equal(got, curve[mixed])
  alone = [i for i, p in enumerate(PROBES) if p.trunk == 2]
  got = make().open([TRUNKS[2]]).score([on(0, PROBES[i]) for i in alone])
  # In smaller programs: with matrices as small as these, another rounding.
  np.testing.assert_allclose(got, curve[alone], atol=1e-6)


@pytest.mark.parametrize('tied', [True, False])
def test_the_margin_is_that_of_the_logits(tied):
  config = dataclasses.replace(CONFIG, tied=tied)
  params = make_params(config)
  x = jnp.asarray(np.random.default_rng(5).normal(size=(7, 32)), jnp.float32)
  pairs = jnp.asarray(np.random.default_rng(6).integers(0, 64, (7, 2)))
  logits = decoder.logits(params, config, x)
  both = np.take_along_axis(np.asarray(logits), np.asarray(pairs), axis=1)
  got = decoder.margins(params, config, x, pairs)
  np.testing.assert_allclose(got, both[:, 0] - both[:, 1], atol=1e-5)


def test_bfloat16_agrees_where_the_margin_is_clear(want):
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
  got = make(params, dtype=jnp.bfloat16).open(TRUNKS).score(PROBES)
  again = reread(PROBES, dtype=jnp.bfloat16, params=params)
  clear = np.abs(again) > 0.1
  assert clear.mean() > 0.5
  np.testing.assert_array_equal(got[clear] > 0, again[clear] > 0)


# On many devices.

MESHES = (
    {'data': 2, 'fsdp': 1, 'tensor': 1},
    {'data': 2, 'fsdp': 1, 'tensor': 2},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
    {'data': 1, 'fsdp': 8, 'tensor': 1},
)


def on_mesh(sizes):
  num = int(np.prod(list(sizes.values())))
  mesh = mesh_lib.make(sizes, jax.devices()[:num])
  where = rules.tree_shardings(PARAMS, decoder.logical_axes(CONFIG), mesh)
  return mesh, jax.device_put(PARAMS, where)


@pytest.fixture(scope='module', params=MESHES, ids=str)
def spread_out(request):
  """A scorer on a mesh, its batch, and what they say."""
  mesh, params = on_mesh(request.param)
  scorer = make(params, mesh=mesh)
  batch = scorer.open(TRUNKS)
  return scorer, batch, batch.score(PROBES)


def test_every_mesh_says_the_same(spread_out, want):
  np.testing.assert_allclose(spread_out[2], want, atol=1e-5)


def test_nothing_is_replicated_by_accident(spread_out):
  scorer, batch, _ = spread_out
  mesh = scorer.programs.mesh
  spread.weights_are_split(scorer.programs.params, CONFIG, mesh)
  spread.cache_is_split(batch._cache, mesh)
  for x in jax.tree.leaves(batch._cache):
    assert x.sharding.spec == decoder.CACHE
  # Two layers; trunks as a power of two, and a spare row, on each row shard.
  shards = mesh_lib.num_row_shards(mesh)
  rows = {1: 8, 2: 4, 4: 2, 8: 1}[shards] + 1
  numbers = 2 * 2 * shards * rows * 2 * CONFIG.head_dim * 768
  assert sum(x.size for x in jax.tree.leaves(batch._cache)) == numbers


def test_no_device_sends_what_a_cache_holds(spread_out):
  scorer, batch, _ = spread_out
  assert len(scorer.programs.compiled) > 2
  for program in scorer.programs.compiled.values():
    spread.no_cache_is_sent(program.as_text(), batch._cache, block=256)


def test_what_is_sent_is_found():
  mesh, _ = on_mesh({'data': 2, 'fsdp': 2, 'tensor': 2})
  cache = make(PARAMS, mesh=mesh).programs.abstract_cache(1, 768)
  gather = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated(mesh))
  text = gather.lower(cache).compile().as_text()
  assert any(768 in shape for shape in spread.sent(text))
  with pytest.raises(AssertionError):
    spread.no_cache_is_sent(text, cache, block=256)
  text = """
    %a = (f32[1,4]{1,0}, f32[2,16,256]{1,0}) all-to-all(%x, %y), channel_id=1
    %b = f32[8,32]{1,0} all-gather-start(f32[8,16]{1,0} %z), dimensions={1}
    ROOT %c = f32[3]{0} add(%all-gather.3, %collective-permute.1)
  """
  assert spread.sent(text) == [(1, 4), (2, 16, 256), (8, 32)]
  with pytest.raises(AssertionError):
    spread.no_cache_is_sent(text, cache, block=256)


def test_two_processes_say_what_one_says(want):
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'tests.judging.host', str(port)]
  hosts = [
      subprocess.Popen(
          [*command, str(i)],
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
      )
      for i in range(2)
  ]
  said = []
  for host in hosts:
    out, err = host.communicate(timeout=300)
    assert not host.returncode, err[-2000:]
    said.append(json.loads(out.splitlines()[-1]))
  assert said[0] == said[1]
  assert said[0]['budget'] == 2**30
  np.testing.assert_allclose(said[0]['margins'], want, atol=1e-5)


def test_heads_that_do_not_divide():
  mesh = mesh_lib.make({'data': 2, 'fsdp': 1, 'tensor': 4})
  with pytest.raises(errors.ConfigError, match=r'mesh\.tensor is 4 .* 2 key'):
    make(mesh=mesh)


# In bounded memory.


def test_groups_hold_about_equal_lengths():
  scorer = make(max_rows=2)
  lengths = [700, 10, 200, 300, 20, 600, 30]
  assert scorer.groups(lengths) == [[1, 4], [6, 2], [3], [5, 0]]
  assert scorer.groups([]) == []


def test_rows_follow_from_the_budget_and_the_compiled_program():
  programs = {}

  def under(budget):
    scorer = make(budget=budget)
    scorer.programs.compiled = programs  # Compiled once for all.
    return scorer

  assert under(None).fitting(256, 64) == 64
  for rows in (1, 4):
    enough = under(1)._used(rows, 256)
    assert under(enough).fitting(256, 4 * rows) == rows
    if rows > 1:
      assert under(enough - 1).fitting(256, 4 * rows) == rows // 2
  with pytest.raises(errors.ConfigError, match=r'compute\.memory_gib: 0\.0'):
    under(1).groups([1000])


@pytest.mark.parametrize('judge_tokens', [128, 16_384])
def test_room_for_any_fork_is_never_told_in_vain(judge_tokens):
  # Weights of some size: a chunk's program leaves out what it does not read.
  config = dataclasses.replace(CONFIG, mlp_dim=4096)
  scorer = make(make_params(config), config, judge_tokens=judge_tokens)
  trunks = memory.needed(scorer.programs.greediest_trunks(1, 512))
  forks = max(map(memory.needed, scorer.programs.greediest_forks(1, 512)))
  for scorer._budget, holds in ((forks - 1, False), (100 * forks, True)):
    assert scorer.holds_any_fork(1, 512) == holds
  if judge_tokens > 1024:  # Many times what a lone trunk's chunk needs.
    assert forks > 2 * trunks


def test_what_the_program_needs_does_not_grow_with_the_rows_it_does_not_read():
  scorer = make()
  extra = lambda num: (
      memory.needed(scorer.programs.trunks(num, 1024, 1))
      - memory.per_device(scorer.programs.abstract_cache(num, 1024))
  )
  assert extra(32) <= extra(2) * 1.1  # The cache is changed in place.


def test_the_greediest_forks_are_counted_in():
  """One trunk, hundreds of cuts: more rows of forks than there are trunks."""
  scorer = make(judge_tokens=4096)
  sized = max(map(memory.needed, scorer.programs.greediest_forks(1, 768)))
  scorer.programs.compiled.clear()
  batch = scorer.open(TRUNKS[2:3])
  batch.score(make_probes(600, TRUNKS[2:3]))
  forks = [
      p for key, p in scorer.programs.compiled.items() if key[0] == 'forks'
  ]
  assert forks and max(map(memory.needed, forks)) <= sized


def test_of_a_lone_trunk_less_is_read_together():
  scorer = make(judge_tokens=512)
  forks = lambda: [
      scorer.programs.num_forks(9, width) for width in (8, 32, 256)
  ]
  assert (scorer.programs.chunk_rows(4, 4), forks()) == (4, [16, 16, 2])
  assert scorer.narrow()
  assert (scorer.programs.chunk_rows(4, 4), forks()) == (2, [16, 8, 1])
  assert scorer.narrow() and not scorer.narrow()
  assert (scorer.programs.chunk_rows(4, 4), forks()) == (1, [16, 4, 1])


@pytest.mark.parametrize('judge_tokens', [128, 1000, 2048, 65_536])
def test_forks_of_any_length_keep_to_the_bound(judge_tokens):
  scorer = make(judge_tokens=judge_tokens)
  sized = max(math.prod(shape) for shape in scorer.programs.fork_shapes())
  for width in map(programs_lib.fork_width, range(1, 1025)):
    for wanted in (1, 99):
      num = scorer.programs.num_forks(wanted, width)
      tokens = num * width * scorer.programs.fork_rows(num, width, 99)
      assert tokens <= max(judge_tokens, width)
      assert tokens <= max(1.5 * sized, width)


def test_long_forks_are_read_fewer_at_a_time():
  anchors = (0, 77, 130, 300, 301)
  tails = [trunk(9, 200 + n) for n in anchors]
  probes = [
      trunk_scorer.Probe(0, at, tail, 1, 2)
      for at, tail in zip(anchors, tails, strict=True)
  ]
  scorer = make(judge_tokens=512)
  got = scorer.open(TRUNKS[3:4]).score(probes)
  np.testing.assert_allclose(got, reread(probes, TRUNKS[3:4]), atol=1e-5)
  shapes = [key[3:] for key in scorer.programs.compiled if key[0] == 'forks']
  assert shapes and max(map(math.prod, shapes)) <= 512


def test_lack_of_memory_is_told_apart():
  class Program:

    def __call__(self, *args):
      raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\nx')

  scorer = make()
  batch = scorer.open(TRUNKS)
  scorer.programs.trunks = lambda *args: Program()
  with pytest.raises(memory.OutOfMemory, match='RESOURCE_EXHAUSTED'):
    batch.score(PROBES)


def test_few_programs(caplog):
  logging.set_verbosity(logging.INFO)
  scorer = make()
  batch = scorer.open(TRUNKS)
  batch.score(PROBES)
  for probe in PROBES[:9]:
    batch.score([probe])
  # Two for trunks; forks of 4 or 8 tokens, one by one or many; and the empty
  # cache, however often it is made.
  assert len(scorer.programs.compiled) == 7
  batch.release()
  batch.score(PROBES[:1])
  scorer.open(TRUNKS)
  assert len(scorer.programs.compiled) == 7


@pytest.mark.parametrize(
    ('length', 'width'),
    [
        (1, 4),
        (4, 4),
        (5, 8),
        (16, 16),
        (17, 24),
        (25, 32),
        (33, 48),
        (100, 128),
    ],
)
def test_fork_width(length, width):
  assert programs_lib.fork_width(length) == width


def test_capacity():
  lengths = (1, 256, 257, 700, 1024, 1025, 30_000, 33_000)
  sizes = [programs_lib.capacity(n) for n in lengths]
  assert sizes == [256, 256, 512, 768, 1024, 1536, 32_768, 49_152]
