"""Each row of the table does to a vector what Hugging Face's tensor does."""

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.checkpoints import hf_names
from palign_jax.models import config as config_lib, decoder, lora

SIZES = dict(V=11, L=2, D=6, F=10, N=4, K=2, H=3, R=5)
# How the model applies each tensor.  A round trip alone would not notice a row
# that is wrong in the same way in both directions.
APPLIED = {
    'q/kernel': 'D,DNH->NH',
    'k/kernel': 'D,DKH->KH',
    'v/kernel': 'D,DKH->KH',
    'o/kernel': 'NH,NHD->D',
    'gate/kernel': 'D,DF->F',
    'up/kernel': 'D,DF->F',
    'down/kernel': 'F,FD->D',
    'lm_head/kernel': 'D,DV->V',
    'embed/table': 'D,VD->V',  # A one-hot from the left gives the embedding.
    'q/lora_a': 'D,DR->R',
    'q/lora_b': 'R,RNH->NH',
    'k/lora_a': 'D,DR->R',
    'k/lora_b': 'R,RKH->KH',
    'v/lora_a': 'D,DR->R',
    'v/lora_b': 'R,RKH->KH',
    'o/lora_a': 'NH,NHR->R',
    'o/lora_b': 'R,RD->D',
    'gate/lora_a': 'D,DR->R',
    'gate/lora_b': 'R,RF->F',
    'up/lora_a': 'D,DR->R',
    'up/lora_b': 'R,RF->F',
    'down/lora_a': 'F,FR->R',
    'down/lora_b': 'R,RD->D',
}
# Added to, or multiplied with, what a head sees, one number per channel.
VECTORS = {
    'q/bias': 'NH',
    'k/bias': 'KH',
    'v/bias': 'KH',
    'q_norm/scale': 'H',
    'k_norm/scale': 'H',
    'attn_norm/scale': 'D',
    'mlp_norm/scale': 'D',
    'final_norm/scale': 'D',
}


def config(**changes):
  return config_lib.ModelConfig(
      **dict(
          vocab_size=11,
          num_layers=2,
          embed_dim=6,
          num_heads=4,
          num_kv_heads=2,
          head_dim=4,
          mlp_dim=10,
          norm_eps=1e-6,
          rope_theta=1e4,
          rope_scaling=None,
          qkv_bias=True,
          qk_norm=True,
          tied=False,
      )
      | changes
  )


def short(row):
  return '/'.join(row.path).removeprefix('layers/')


ROWS = {
    short(row): row for row in hf_names.rows(config()) + hf_names.adapter_rows()
}


def tensor(row):
  return np.random.default_rng(0).normal(size=row.hf_shape(SIZES))


def imported(row, x):
  whole = (slice(None),) * len(row.shape(SIZES))
  return row.read(lambda index: x[index], SIZES, whole)


@pytest.mark.parametrize('name', APPLIED)
def test_applies_like_hf(name):
  row, x = ROWS[name], tensor(ROWS[name])
  inputs = APPLIED[name].split(',')[0]
  vector = np.random.default_rng(1).normal(size=[SIZES[a] for a in inputs])
  got = np.einsum(APPLIED[name], vector, imported(row, x))
  np.testing.assert_allclose(got.ravel(), x @ vector.ravel())


@pytest.mark.parametrize('name', VECTORS)
def test_vectors_keep_their_channels(name):
  row, x = ROWS[name], tensor(ROWS[name])
  got = imported(row, x)
  assert got.shape == tuple(SIZES[a] for a in VECTORS[name])
  np.testing.assert_array_equal(got.ravel(), x)


def test_every_row_is_applied_above():
  assert ROWS.keys() == APPLIED.keys() | VECTORS.keys()


@pytest.mark.parametrize('name', ROWS)
def test_round_trip(name):
  row, x = ROWS[name], tensor(ROWS[name])
  np.testing.assert_array_equal(row.to_hf(imported(row, x), SIZES), x)


@pytest.mark.parametrize('name', ROWS)
def test_a_part_reads_only_that_part(name):
  row, x = ROWS[name], tensor(ROWS[name])
  whole, read = imported(row, x), []

  def get(index):
    read.append(x[index].size)
    return x[index]

  for axis, size in enumerate(whole.shape):
    index = [slice(None)] * whole.ndim
    index[axis] = slice(1, size)
    part = row.read(get, SIZES, tuple(index))
    np.testing.assert_array_equal(part, whole[tuple(index)])
    # A head's channels lie together: they are read whole and then cut.
    inner = row.shape(SIZES)[axis] == SIZES['H'] and whole.ndim > 1
    assert read.pop() == (x.size if inner else part.size)


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('qkv_bias', [True, False])
@pytest.mark.parametrize('qk_norm', [True, False])
def test_rows_are_the_model_parameters(tied, qkv_bias, qk_norm):
  c = config(tied=tied, qkv_bias=qkv_bias, qk_norm=qk_norm)
  shapes = decoder.abstract(c, jnp.float32)
  want = {k: x.shape for k, x in traverse_util.flatten_dict(shapes).items()}
  sizes = hf_names.sizes(c)
  rows = hf_names.rows(c)
  got = {
      row.path: ((2,) if row.stacked else ()) + row.shape(sizes) for row in rows
  }
  assert got == want
  assert len(got) == len(rows) == len({row.hf for row in rows})


def test_adapter_rows_are_the_adapters_parameters():
  c = config()
  shapes = jax.eval_shape(lambda: lora.init(c, 5, jax.random.key(0)))
  want = {k: x.shape for k, x in traverse_util.flatten_dict(shapes).items()}
  sizes = hf_names.sizes(c, rank=5)
  got = {row.path: (2, *row.shape(sizes)) for row in hf_names.adapter_rows()}
  assert got == want


def test_names_of_all_layers():
  names = hf_names.names(hf_names.rows(config(tied=True)), 2)
  assert len(names) == 2 * 14 + 2
  assert names['model.layers.1.mlp.up_proj.weight'].path[1] == 'up'
  assert 'lm_head.weight' not in names
