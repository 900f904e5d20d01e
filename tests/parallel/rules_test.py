"""The table puts each axis where it says, and refuses what cannot be."""

import jax
from jax.sharding import PartitionSpec as P
import pytest

from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib, rules


def make(data, fsdp, tensor, sequence=1):
  sizes = data, fsdp, tensor, sequence
  return mesh_lib.make(dict(zip(mesh_lib.AXES, sizes, strict=True)))


@pytest.mark.parametrize(
    'axes, shape, spec',
    [
        (('embed', 'mlp'), (8, 6), P('fsdp', 'tensor')),
        (('mlp', 'embed'), (6, 8), P('tensor', 'fsdp')),
        (('vocab', 'embed'), (10, 4), P('tensor', 'fsdp')),
        (('rank', 'small_mlp'), (3, 8), P(None, ('tensor', 'fsdp'))),
        # As far as it goes.
        (('rank', 'small_mlp'), (3, 6), P(None, 'tensor')),
        (('rank', 'small_mlp'), (3, 7), P()),
        (
            ('rank', 'heads', 'small_head_dim'),
            (3, 2, 4),
            P(None, 'tensor', 'fsdp'),
        ),
        (('embed', 'heads', 'head_dim'), (4, 2, 3), P('fsdp', 'tensor')),
        (('embed', 'kv_heads', 'head_dim'), (4, 2, 3), P('fsdp', 'tensor')),
        (('layers', 'rank'), (3, 5), P()),
        (
            ('act_batch', 'act_time', 'act_embed'),
            (4, 3, 5),
            P(('data', 'fsdp')),
        ),
        (('act_heads', 'act_mlp'), (2, 4), None),
        (('act_kv_heads', 'act_time'), (2, 4), P('tensor')),
        (('act_vocab', 'act_time'), (2, 4), P('tensor')),
    ],
)
def test_each_row_of_the_table(axes, shape, spec):
  mesh = make(2, 2, 2)
  if spec is None:
    with pytest.raises(errors.ConfigError, match='two of its axes'):
      rules.sharding('x', shape, axes, mesh)
    return
  got = rules.sharding('x', shape, axes, mesh)
  assert got.is_equivalent_to(jax.NamedSharding(mesh, spec), len(shape))


def test_sequence_splits_tokens_and_weights():
  mesh = make(1, 2, 2, 2)
  at = lambda shape, axes: rules.sharding('x', shape, axes, mesh).spec
  names = ('act_batch', 'act_time', 'act_embed')
  assert at((4, 6, 8), names) == P(('fsdp',), ('sequence',), None)
  assert at((8, 6), ('embed', 'mlp')) == P(('fsdp', 'sequence'), ('tensor',))


def test_a_layout_leaves_uneven_axes_to_the_compiler():
  layout = rules.Layout(make(2, 2, 1, 2))
  names = ('act_batch', 'act_time', 'act_embed')
  put = jax.jit(lambda x: layout(x, *names))
  assert put(jax.numpy.ones((4, 6, 8))).sharding.shard_shape((4, 6, 8)) == (
      1,
      3,
      8,
  )
  assert put(jax.numpy.ones((3, 5, 8))).shape == (3, 5, 8)
  assert layout.splits_rows and not rules.ANYWHERE.splits_rows


def test_uneven_and_unknown_axes_are_named():
  mesh = make(1, 4, 2)
  with pytest.raises(errors.ConfigError, match="up: axis 'mlp' of size 7"):
    rules.sharding('up', (4, 7), ('embed', 'mlp'), mesh)
  with pytest.raises(errors.ConfigError, match="'mpl' has no sharding rule"):
    rules.sharding('up', (4, 8), ('embed', 'mpl'), mesh)


def test_a_whole_model_splits():
  config = config_lib.ModelConfig(
      vocab_size=32,
      num_layers=2,
      embed_dim=16,
      num_heads=4,
      num_kv_heads=2,
      head_dim=8,
      mlp_dim=24,
      norm_eps=1e-6,
      rope_theta=1e4,
      rope_scaling=None,
      qkv_bias=True,
      qk_norm=True,
      tied=False,
  )
  abstract = decoder.abstract(config, jax.numpy.float32)
  mesh = make(1, 4, 2)
  shardings = rules.tree_shardings(abstract, decoder.logical_axes(config), mesh)
  shard = lambda s, x: s.shard_shape(x.shape)
  got = jax.tree.map(shard, shardings, abstract)
  assert got['embed']['table'] == (16, 4)
  assert got['layers']['q']['kernel'] == (2, 4, 2, 8)
  assert got['layers']['k']['bias'] == (2, 1, 8)
  assert got['layers']['o']['kernel'] == (2, 2, 8, 4)
  assert got['layers']['down']['kernel'] == (2, 12, 4)
  assert got['lm_head']['kernel'] == (4, 16)
  assert got['final_norm']['scale'] == (4,)
