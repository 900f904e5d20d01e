"""Norm and block compute what transformers' modules do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from palign_jax.checkpoints import hf_config, hf_names
from palign_jax.models import decoder, flash, layers, rope

NORMS = {1e-6: 'Qwen2RMSNorm', 0.3: 'Qwen3RMSNorm', 1e-2: 'LlamaRMSNorm'}
MODULES = (modeling_qwen2, modeling_qwen3, modeling_llama)
FAMILIES = {
    'qwen2': ('Qwen2', modeling_qwen2, dict(num_key_value_heads=2)),
    'qwen3': ('Qwen3', modeling_qwen3, dict(num_key_value_heads=1)),
    'llama': ('Llama', modeling_llama, dict(num_key_value_heads=4)),
}
T = 70  # More than one block of queries.


@pytest.fixture(autouse=True)
def one_thread():
  torch.set_num_threads(1)


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize('eps', NORMS)
def test_norm(eps):
  (cls,) = (
      getattr(m, n) for m in MODULES for n in [NORMS[eps]] if hasattr(m, n)
  )
  x, scale = normal(2, 3, 12) * 0.1, normal(12, seed=1)
  theirs = cls(12, eps)
  theirs.weight.data = torch.tensor(scale)
  ours = layers.RMSNorm(12, 'embed', eps)
  ours.scale.set_value(jnp.asarray(scale))
  want = theirs(torch.tensor(x)).detach().numpy()
  np.testing.assert_allclose(ours(jnp.asarray(x)), want, rtol=0, atol=1e-5)


def test_norm_in_bfloat16_is_computed_in_float32():
  norm = layers.RMSNorm(4096, 'embed', 1e-6)
  x = jnp.full((1, 4096), 3.0, jnp.bfloat16)
  # A bfloat16 sum of 4096 squares would stop at 256 times one of them.
  np.testing.assert_array_equal(norm(x), jnp.ones((1, 4096), jnp.bfloat16))
  assert norm(x).dtype == jnp.bfloat16


@pytest.fixture(scope='module', params=FAMILIES)
def pair(request):
  """A layer of transformers, its rotations, ours, and our config."""
  name, module, numbers = FAMILIES[request.param]
  hf = getattr(transformers, f'{name}Config')(
      vocab_size=50,
      hidden_size=32,
      intermediate_size=56,
      num_hidden_layers=1,
      num_attention_heads=4,
      head_dim=8,
      rms_norm_eps=1e-4,
      architectures=[f'{name}ForCausalLM'],
      **numbers,
  )
  config = hf_config.read(_raw(hf))
  layer = getattr(module, f'{name}DecoderLayer')(hf, 0)
  generator = torch.manual_seed(0)
  for key, weight in layer.named_parameters():
    weight.data.normal_(float('norm' in key), 0.3, generator=generator)
  turn = getattr(module, f'{name}RotaryEmbedding')(hf)
  return layer, turn, decoder._block(config, _ours(layer, config)), config


def _raw(hf):
  kept = (
      'architectures model_type vocab_size hidden_size intermediate_size'
      ' num_hidden_layers num_attention_heads num_key_value_heads head_dim'
      ' rms_norm_eps rope_parameters'
  )
  return {k: v for k, v in hf.to_dict().items() if k in kept.split()}


def _ours(layer, config):
  """The layer's weights as our tree."""
  sizes, tree = hf_names.sizes(config), {}
  for row in hf_names.rows(config):
    if row.stacked:
      key = row.hf.removeprefix('model.layers.{}.')
      x = layer.state_dict()[key].numpy()
      whole = (slice(None),) * len(row.shape(sizes))
      _, outer, inner = row.path
      part = row.read(lambda index, x=x: x[index], sizes, whole)
      tree.setdefault(outer, {})[inner] = jnp.asarray(part)
  return tree


def inputs(turn):
  x, positions = normal(2, T, 32), np.tile(np.arange(T), (2, 1))
  return x, positions, turn(torch.tensor(x), torch.tensor(positions))


def causal_mask():
  return torch.full((1, 1, T, T), float('-inf')).triu(1)


def run(block, config, x, positions):
  @jax.jit
  def run(x, positions):
    cos, sin = rope.angles(
        positions, config.head_dim, config.rope_theta, config.rope_scaling
    )
    turn = lambda y: rope.rotate(y, cos, sin)
    attended = lambda q, k, v: (flash.causal(q, k, v, None),) * 2
    out, seen = block(x, turn, attended, 0.0)
    return out, block.o(seen, 0.0)

  return run(jnp.asarray(x), jnp.asarray(positions, jnp.int32))


def test_block_and_attention(pair):
  layer, turn, block, config = pair
  x, positions, angles = inputs(turn)
  got, attended = run(block, config, x, positions)
  kwargs = dict(attention_mask=causal_mask(), position_embeddings=angles)
  with torch.no_grad():
    want = layer(torch.tensor(x), **kwargs)
    normed = layer.input_layernorm(torch.tensor(x))
    want_attended, _ = layer.self_attn(normed, **kwargs)
  np.testing.assert_allclose(attended, want_attended, rtol=0, atol=1e-4)
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-4)
