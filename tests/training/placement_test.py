"""Nothing large lies on every device: neither state nor what a step makes."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import pytest

from palign_jax.models import config as config_lib, decoder, kernels, lora
from palign_jax.parallel import mesh as mesh_lib, rules
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
MESHES = ((1, 16, 1, 1), (1, 64, 1, 1), (4, 16, 4, 1), (2, 8, 2, 4))
SPLITTING = ('fsdp', 'sequence')  # Over data weights are replicated.


def abstract(shapes, axes, mesh):
  where = rules.tree_shardings(shapes, axes, mesh)
  place = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  return jax.tree.map(place, shapes, where)


def replicated(tree, mesh):
  """Names the arrays above 1 MB on a device that an axis does not split."""
  needed = {axis for axis in SPLITTING if mesh.shape[axis] > 1}
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    # A split over one axis is that axis, not a tuple of it.
    used = set(jax.tree.leaves(tuple(x.sharding.spec)))
    size = x.dtype.itemsize
    for n in x.sharding.shard_shape(x.shape):
      size *= n
    if size > 1e6 and not needed <= used:
      yield jax.tree_util.keystr(path, simple=True, separator='/')


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
      'full': state('adamw', weights, axes, mesh),
      'muon': state('muon', weights, axes, mesh),
      'lora': state('adamw', adapters, lora.logical_axes(MODEL, 16), mesh),
  }
  assert not list(replicated(trees, mesh))
  number = len(jax.tree.leaves(trees['full'].params))
  assert len(jax.tree.leaves(trees['full'].opt_state)) >= 2 * number


def test_the_walk_finds_what_is_replicated():
  mesh = jax.sharding.AbstractMesh((1, 16, 1, 1), mesh_lib.AXES)
  whole = jax.NamedSharding(mesh, jax.P())
  x = jax.ShapeDtypeStruct((1024, 1024), jnp.float32, sharding=whole)
  assert list(replicated({'a': {'b': x}}, mesh)) == ['a/b']


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
    assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


# Every size of this model and batch is another number.
SMALL = dataclasses.replace(
    tiny.MODEL, num_layers=3, embed_dim=40, mlp_dim=160, vocab_size=144
)
ROWS, WIDTH = 6, 224


@pytest.mark.parametrize('method', ['lora', 'full'])
def test_activations_are_split(method):
  mesh = mesh_lib.make({'fsdp': 2, 'tensor': 2, 'sequence': 2})
  weights = decoder.abstract(SMALL, jnp.dtype('float32'))
  frozen = abstract(weights, decoder.logical_axes(SMALL), mesh)
  trained = frozen
  if method == 'lora':
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
      frozen if method == 'lora' else {},
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
