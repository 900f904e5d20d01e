"""A preset is what the importer reads from the repository's config.json."""

import pytest

from palign_jax.checkpoints import hf_config
from palign_jax.models import presets

_QWEN2 = dict(architectures=['Qwen2ForCausalLM'], use_sliding_window=False)
_QWEN3 = dict(
    architectures=['Qwen3ForCausalLM'],
    attention_bias=False,
    head_dim=128,
    max_position_embeddings=40_960,
    num_key_value_heads=8,
    rms_norm_eps=1e-6,
    rope_scaling=None,
    rope_theta=1_000_000,
    vocab_size=151_936,
)
_7B = dict(
    _QWEN2,
    hidden_size=3584,
    intermediate_size=18_944,
    num_attention_heads=28,
    num_hidden_layers=28,
    num_key_value_heads=4,
    rms_norm_eps=1e-6,
    vocab_size=152_064,
)
# What bears on the model in each repository's config.json.
FILES = {
    'Qwen/Qwen2.5-7B-Instruct': dict(
        _7B, max_position_embeddings=32_768, rope_theta=1_000_000.0
    ),
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B': dict(
        _7B, max_position_embeddings=131_072, rope_theta=10_000
    ),
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B': dict(
        _QWEN2,
        hidden_size=1536,
        intermediate_size=8960,
        max_position_embeddings=131_072,
        num_attention_heads=12,
        num_hidden_layers=28,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_theta=10_000,
        vocab_size=151_936,
    ),
    'Qwen/QwQ-32B': dict(
        _QWEN2,
        hidden_size=5120,
        intermediate_size=27_648,
        max_position_embeddings=40_960,
        num_attention_heads=40,
        num_hidden_layers=64,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_theta=1_000_000.0,
        vocab_size=152_064,
    ),
    'Qwen/Qwen3-8B': dict(
        _QWEN3,
        hidden_size=4096,
        intermediate_size=12_288,
        num_attention_heads=32,
        num_hidden_layers=36,
    ),
    'Qwen/Qwen3-14B': dict(
        _QWEN3,
        hidden_size=5120,
        intermediate_size=17_408,
        num_attention_heads=40,
        num_hidden_layers=40,
    ),
    'meta-llama/Llama-3.2-3B-Instruct': dict(
        architectures=['LlamaForCausalLM'],
        attention_bias=False,
        mlp_bias=False,
        head_dim=128,
        hidden_size=3072,
        intermediate_size=8192,
        max_position_embeddings=131_072,
        num_attention_heads=24,
        num_hidden_layers=28,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        rope_scaling=dict(
            factor=32.0,
            high_freq_factor=4.0,
            low_freq_factor=1.0,
            original_max_position_embeddings=8192,
            rope_type='llama3',
        ),
        rope_theta=500_000.0,
        tie_word_embeddings=True,
        vocab_size=128_256,
    ),
}
# Parameters, in billions, as the repositories tell them.
SIZES = {
    'Qwen/Qwen2.5-7B-Instruct': 7.616,
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B': 7.616,
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B': 1.777,
    'Qwen/QwQ-32B': 32.764,
    'Qwen/Qwen3-8B': 8.191,
    'Qwen/Qwen3-14B': 14.768,
    'meta-llama/Llama-3.2-3B-Instruct': 3.213,
}


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_is_what_its_file_says(name):
  raw, preset = FILES[name], presets.PRESETS[name]
  assert hf_config.read(raw) == preset.model
  assert hf_config.max_positions(raw) == preset.max_positions


@pytest.mark.parametrize('name', presets.PRESETS)
def test_a_preset_has_as_many_parameters_as_the_model(name):
  m = presets.PRESETS[name].model
  heads = (2 * m.num_heads + 2 * m.num_kv_heads) * m.head_dim
  layer = m.embed_dim * (heads + 3 * m.mlp_dim + 2)
  layer += m.qkv_bias * (m.num_heads + 2 * m.num_kv_heads) * m.head_dim
  layer += m.qk_norm * 2 * m.head_dim
  tables = 1 if m.tied else 2
  total = m.num_layers * layer + (tables * m.vocab_size + 1) * m.embed_dim
  assert round(total / 1e9, 3) == SIZES[name]


def test_a_preset_is_found_by_the_last_part_of_its_name():
  qwen = presets.PRESETS['Qwen/Qwen3-8B']
  for name in ('Qwen/Qwen3-8B', '/models/Qwen3-8B', '/models/Qwen3-8B/'):
    assert presets.find(name) is qwen
  assert presets.find('/models/Qwen3') is None
