"""Nothing large lies on every device: neither state nor what a step makes."""

import dataclasses
import functools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from palign_jax.judging import trunk_scorer
from palign_jax.models import (
    config as config_lib,
    decoder,
    kernels,
    lora,
    quantization,
)
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.sampling import steps
from palign_jax.training import loss, optim, step
from tests.training import tiny

MODEL = config_lib.ModelConfig(  # Qwen2.5-7B.
    vocab_size=152_064,
    num_layers=28,
    embed_dim=3584,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    mlp_dim=18_944,
    norm_eps=1e-6,
    rope_theta=1e6,
    rope_scaling=None,
    qkv_bias=True,
    qk_norm=False,
    tied=False,
)
MESHES = (
    (1, 16, 1, 1),
    (1, 64, 1, 1),
    (1, 4, 4, 1),
    (1, 1, 4, 1),
    (4, 16, 4, 1),
    (2, 8, 2, 4),
)
SPLITTING = ('fsdp', 'tensor', 'sequence')  # Over data weights are replicated.
# By design not split over tensor: adapters at the stream between projections,
# [L embed rank].  Its channels lie whole on each device of tensor, ranks are
# too few, and all of them are 1.6 MB a projection over 4 devices of fsdp.
AT_THE_STREAM = re.compile(r'/(([qkv]|gate|up)/lora_a|(o|down)/lora_b)$')


def abstract(shapes, axes, mesh):
  where = rules.tree_shardings(shapes, axes, mesh)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, shapes, where)


def replicated(tree, mesh):
  """Names the arrays above 1 MB on a device that an axis does not split."""
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    needed = {axis for axis in SPLITTING if mesh.shape[axis] > 1}
    if AT_THE_STREAM.search(name):
      needed -= {'tensor'}
    # A split over one axis is that axis, not a tuple of it.
    used = set(jax.tree.leaves(tuple(x.sharding.spec)))
    size = x.dtype.itemsize
    for n in x.sharding.shard_shape(x.shape):
      size *= n
    if size > 1e6 and not needed <= used:
      yield name


def int8(model, mesh):
  small = quantization.abstract(decoder.abstract(model, jnp.bfloat16))
  return abstract(small, decoder.logical_axes(model, quantized=True), mesh)


def state(name, shapes, axes, mesh):
  config = dataclasses.replace(tiny.OPTIM, name=name)
  optimizer = optim.make(config, optim.schedule(config, 10))
  return step.abstract(abstract(shapes, axes, mesh), optimizer)


@pytest.mark.parametrize('sizes', MESHES, ids=str)
def test_a_7b_state_is_split(sizes):
  mesh = jax.sharding.AbstractMesh(sizes, mesh_lib.AXES)
  weights = decoder.abstract(MODEL, jnp.dtype('float32'))
  axes = decoder.logical_axes(MODEL)
  adapters = jax.eval_shape(lambda: lora.init(MODEL, 16, jax.random.key(0)))
  trees = {
      'frozen': abstract(weights, axes, mesh),
      'int8': int8(MODEL, mesh),
      'full': state('adamw', weights, axes, mesh),
      'muon': state('muon', weights, axes, mesh),
      'lora': state('adamw', adapters, lora.logical_axes(MODEL, 16), mesh),
  }
  assert not list(replicated(trees, mesh))
  number = len(jax.tree.leaves(trees['full'].params))
  assert len(jax.tree.leaves(trees['full'].opt_state)) >= 2 * number


@pytest.mark.parametrize(
    'sizes, spec',
    [
        ((1, 16, 1, 1), ()),
        ((1, 2, 4, 1), ('fsdp',)),
        ((1, 2, 4, 1), ('tensor',)),
        ((1, 2, 1, 4), ('fsdp',)),
    ],
)
def test_the_walk_finds_what_is_replicated(sizes, spec):
  mesh = jax.sharding.AbstractMesh(sizes, mesh_lib.AXES)
  where = jax.NamedSharding(mesh, jax.P(*spec))
  x = jax.ShapeDtypeStruct((1024, 2048), jnp.float32, sharding=where)
  assert list(replicated({'a': {'b': x}}, mesh)) == ['a/b']


def test_a_7b_cache_is_split():
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  dtype = jnp.dtype('bfloat16')
  shardings = functools.partial(jax.tree.map, lambda x: x.sharding)
  sizes = dict(num_rows=64, capacity=32_768, dtype=dtype)
  shapes = jax.eval_shape(lambda: decoder.new_cache(MODEL, **sizes))
  made = steps.new_cache.lower(config=MODEL, mesh=mesh, **sizes).compile()
  judge = trunk_scorer.TrunkScorer(
      {'layers': ()},
      MODEL,
      mesh=mesh,
      dtype=dtype,
      budget=None,
      judge_tokens=2048,
  )
  kept = judge.programs.abstract_cache(15, 32_768)
  trees = (shapes, made.output_shardings), (kept, shardings(kept))
  for tree, places in trees:
    for x, where in zip(*map(jax.tree.leaves, (tree, places)), strict=True):
      # On every device an eighth.
      assert 8 * math.prod(where.shard_shape(x.shape)) == x.size > 8e6


@pytest.mark.parametrize('name', ['adamw', 'muon'])
def test_abstract_is_what_init_makes(name):
  mesh = mesh_lib.make({'fsdp': 2, 'tensor': 2, 'sequence': 2})
  params, axes = tiny.params(), decoder.logical_axes(tiny.MODEL)
  params = jax.device_put(params, rules.tree_shardings(params, axes, mesh))
  like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      params,
  )
  config = dataclasses.replace(tiny.OPTIM, name=name)
  optimizer = optim.make(config, optim.schedule(config, 10))
  made, said = step.init(params, optimizer), step.abstract(like, optimizer)
  assert jax.tree.structure(made) == jax.tree.structure(said)
  for x, y in zip(jax.tree.leaves(made), jax.tree.leaves(said), strict=True):
    assert (x.shape, x.dtype) == (y.shape, y.dtype)
    assert x.sharding == y.sharding  # Or the second step compiles anew.


# Every size of this model and batch is another number.
SMALL = dataclasses.replace(
    tiny.MODEL, num_layers=3, embed_dim=40, mlp_dim=160, vocab_size=144
)
ROWS, WIDTH = 6, 224


@pytest.mark.parametrize('method', ['lora', 'int8', 'full'])
def test_activations_are_split(method):
  mesh = mesh_lib.make({'fsdp': 2, 'tensor': 2, 'sequence': 2})
  weights = decoder.abstract(SMALL, jnp.dtype('float32'))
  frozen = abstract(weights, decoder.logical_axes(SMALL), mesh)
  trained = frozen
  if method == 'int8':
    frozen = int8(SMALL, mesh)
  if method != 'full':
    adapters = jax.eval_shape(lambda: lora.init(SMALL, 5, jax.random.key(0)))
    trained = abstract(adapters, lora.logical_axes(SMALL, 5), mesh)
  optimizer = optim.make(tiny.OPTIM, optim.schedule(tiny.OPTIM, 10))
  config = loss.LossConfig(
      'float32', 'full', 56, 2.0, kernels.Backend('auto', mesh)
  )
  pure = step.make(
      SMALL,
      config,
      optimizer,
      optim.schedule(tiny.OPTIM, 10),
      1.0,
      jax.tree.map(lambda x: x.sharding, trained),
  )
  state = step.abstract(trained, optimizer)
  program = step.jit(pure, state).lower(
      {} if method == 'full' else frozen,
      state,
      step.abstract_batch(1, ROWS, WIDTH, mesh),
  )
  assert not list(whole_activations(program.compile().as_text()))


def whole_activations(text):
  """Yields activations that are not split as the table says, and all logits."""
  D, F, V, t = 40, 160, 144, WIDTH // 2
  channels = {D, F, F // 2, V, V // 2}
  for shape in sorted(set(re.findall(r'f32\[([\d,]+)\]', text))):
    dims = [int(n) for n in shape.split(',')]
    rows = {WIDTH, WIDTH * ROWS, WIDTH * ROWS // 2}
    whole_rows = rows & set(dims) and channels & set(dims)
    all_rows = {t, t // 2} & set(dims) and ROWS in dims
    all_channels = {t, t * 2, t // 2} & set(dims) and {F, V} & set(dims)
    all_logits = {t, t * ROWS // 2} & set(dims) and {V, V // 2} & set(dims)
    if whole_rows or all_rows or all_channels or all_logits:
      yield shape
