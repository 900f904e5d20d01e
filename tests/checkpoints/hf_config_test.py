"""Every field of a config.json is read, known as harmless, or refused."""

import math

import pytest

from palign_jax.checkpoints import hf_config
from palign_jax.core import errors
from palign_jax.models import config as config_lib

# The numbers of four models as their config.json states them on the Hub.
QWEN2_5_7B = dict(
    architectures=['Qwen2ForCausalLM'],
    attention_dropout=0.0,
    bos_token_id=151643,
    eos_token_id=151645,
    hidden_act='silu',
    hidden_size=3584,
    initializer_range=0.02,
    intermediate_size=18944,
    max_position_embeddings=32768,
    max_window_layers=28,
    model_type='qwen2',
    num_attention_heads=28,
    num_hidden_layers=28,
    num_key_value_heads=4,
    rms_norm_eps=1e-06,
    rope_theta=1000000.0,
    sliding_window=131072,
    tie_word_embeddings=False,
    torch_dtype='bfloat16',
    transformers_version='4.43.1',
    use_cache=True,
    use_sliding_window=False,
    vocab_size=152064,
)
QWEN3_8B = QWEN2_5_7B | dict(
    architectures=['Qwen3ForCausalLM'],
    attention_bias=False,
    head_dim=128,
    hidden_size=4096,
    intermediate_size=12288,
    max_position_embeddings=40960,
    max_window_layers=36,
    model_type='qwen3',
    num_attention_heads=32,
    num_hidden_layers=36,
    num_key_value_heads=8,
    rope_scaling=None,
    sliding_window=None,
    vocab_size=151936,
)
LLAMA2_7B = dict(  # States neither rope_theta nor a head_dim.
    architectures=['LlamaForCausalLM'],
    bos_token_id=1,
    eos_token_id=2,
    hidden_act='silu',
    hidden_size=4096,
    initializer_range=0.02,
    intermediate_size=11008,
    max_position_embeddings=4096,
    model_type='llama',
    num_attention_heads=32,
    num_hidden_layers=32,
    num_key_value_heads=32,
    pretraining_tp=1,
    rms_norm_eps=1e-05,
    rope_scaling=None,
    tie_word_embeddings=False,
    torch_dtype='float16',
    use_cache=True,
    vocab_size=32000,
)
LLAMA3_1_8B = LLAMA2_7B | dict(
    attention_bias=False,
    eos_token_id=[128001, 128008, 128009],
    intermediate_size=14336,
    max_position_embeddings=131072,
    mlp_bias=False,
    num_key_value_heads=8,
    rope_scaling=dict(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
        rope_type='llama3',
    ),
    rope_theta=500000.0,
    vocab_size=128256,
)
YARN = dict(factor=4.0, original_max_position_embeddings=32768, type='yarn')


def model(**changes):
  qwen = dict(
      vocab_size=152064,
      num_layers=28,
      embed_dim=3584,
      num_heads=28,
      num_kv_heads=4,
      head_dim=128,
      mlp_dim=18944,
      norm_eps=1e-6,
      rope_theta=1e6,
      rope_scaling=None,
      qkv_bias=True,
      qk_norm=False,
      tied=False,
  )
  return config_lib.ModelConfig(**qwen | changes)


LLAMA3_SCALING = config_lib.Llama3Scaling(8.0, 1.0, 4.0, 8192)
CASES = {
    'qwen2.5': (QWEN2_5_7B, model()),
    'qwen3': (
        QWEN3_8B,
        model(
            vocab_size=151936,
            num_layers=36,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            mlp_dim=12288,
            qkv_bias=False,
            qk_norm=True,
        ),
    ),
    'llama2': (
        LLAMA2_7B,
        model(
            vocab_size=32000,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=32,
            mlp_dim=11008,
            norm_eps=1e-5,
            rope_theta=10000.0,
            qkv_bias=False,
        ),
    ),
    'llama3.1': (
        LLAMA3_1_8B,
        model(
            vocab_size=128256,
            num_layers=32,
            embed_dim=4096,
            num_heads=32,
            num_kv_heads=8,
            mlp_dim=14336,
            norm_eps=1e-5,
            rope_theta=500000.0,
            rope_scaling=LLAMA3_SCALING,
            qkv_bias=False,
        ),
    ),
    'qwen2.5 with yarn': (
        QWEN2_5_7B | dict(rope_scaling=YARN),
        model(
            rope_scaling=config_lib.YarnScaling(
                factor=4.0,
                original_max_positions=32768,
                beta_fast=32.0,
                beta_slow=1.0,
                attention_factor=0.1 * math.log(4.0) + 1.0,
            )
        ),
    ),
}


def as_transformers_5(raw):
  """The same config with its rope and dtype where transformers 5 has them."""
  raw = dict(raw)
  theta = raw.pop('rope_theta', 10000.0)
  scaling = raw.pop('rope_scaling', None) or {'rope_type': 'default'}
  raw['rope_parameters'] = scaling | {'rope_theta': theta}
  raw['dtype'] = raw.pop('torch_dtype')
  raw['layer_types'] = ['full_attention'] * raw['num_hidden_layers']
  return raw


@pytest.mark.parametrize('name', CASES)
def test_reads_both_generations(name):
  raw, want = CASES[name]
  assert hf_config.read(raw) == want
  assert hf_config.read(as_transformers_5(raw)) == want


@pytest.mark.parametrize('name', CASES)
def test_written_config_reads_the_same(name):
  raw, want = CASES[name]
  written = hf_config.write(want, as_transformers_5(raw), 'bfloat16')
  assert hf_config.read(written) == want
  assert hf_config.max_positions(written) == hf_config.max_positions(raw)
  assert written['torch_dtype'] == 'bfloat16'
  assert not written.keys() & {'rope_parameters', 'layer_types', 'dtype'}
  for field in ('bos_token_id', 'eos_token_id', 'initializer_range'):
    assert written[field] == raw[field]


def test_written_config_keeps_what_has_no_effect():
  raw = QWEN2_5_7B | {'unsloth_fixed': True}
  written = hf_config.write(model(), raw, 'float32')
  changed = {'torch_dtype': 'float32', 'rope_scaling': None, 'head_dim': 128}
  assert written == raw | changed


def test_no_architecture_for_a_mix():
  mix = model(qkv_bias=True, qk_norm=True)
  with pytest.raises(errors.CheckpointError, match='qk_norm=True; known are'):
    hf_config.write(mix, QWEN2_5_7B, 'float32')


def test_yarn_reads_every_number_given():
  scaling = YARN | dict(beta_fast=24, beta_slow=2, attention_factor=1.5)
  got = hf_config.read(QWEN2_5_7B | dict(rope_scaling=scaling)).rope_scaling
  assert got == config_lib.YarnScaling(4.0, 32768, 24.0, 2.0, 1.5)


def test_yarn_without_original_length_takes_max_positions():
  raw = QWEN2_5_7B | dict(rope_scaling=dict(rope_type='yarn', factor=2.0))
  assert hf_config.read(raw).rope_scaling.original_max_positions == 32768
  assert hf_config.max_positions(raw) == 65536


@pytest.mark.parametrize(
    'raw, want',
    [
        (QWEN2_5_7B, 32768),
        (QWEN2_5_7B | dict(rope_scaling=YARN), 131072),
        (QWEN3_8B | dict(rope_scaling=YARN), 131072),
        (LLAMA3_1_8B, 131072),
        (LLAMA2_7B | dict(rope_scaling=dict(type='linear', factor=2.0)), 8192),
    ],
)
def test_max_positions(raw, want):
  assert hf_config.max_positions(raw) == want


def rope(**fields):
  return dict(rope_scaling=fields)


@pytest.mark.parametrize(
    'change, message',
    [
        (dict(architectures=['MistralForCausalLM']), r"\['Mistral.*known are"),
        (dict(architectures=None), 'architectures is None; known are Qwen2'),
        (dict(model_type='qwen3'), "model_type is 'qwen3', but Qwen2ForCausal"),
        (dict(logit_scale=2.0), r'logit_scale \(2.0\) is not known'),
        (dict(auto_map={'x': 'y'}), r"auto_map \(\{'x': 'y'\}\) is not known"),
        (dict(quantization_config={'bits': 4}), 'quantization_config is'),
        (dict(use_sliding_window=True), 'use_sliding_window is True; only'),
        (dict(use_mrope=True), 'use_mrope is True'),
        (
            dict(layer_types=['full_attention'] * 27 + ['sliding_attention']),
            "layer_types holds 'sliding_attention'",
        ),
        (dict(layer_types=['full_attention']), 'layer_types has 1 entries'),
        (dict(hidden_act='gelu'), "hidden_act is 'gelu'; only 'silu'"),
        (dict(attention_bias=True), 'attention_bias is True; only False'),
        (dict(mlp_bias=True), 'mlp_bias is True; only False'),
        (dict(hidden_size=None), 'hidden_size is missing'),
        (dict(hidden_size='3584'), "hidden_size is '3584'; it must be"),
        (dict(vocab_size=-1), 'vocab_size is -1; it must be a positive int'),
        (dict(num_attention_heads=27), 'does not split over num_attention_'),
        (dict(num_key_value_heads=5), 'a multiple of num_key_value_heads 5'),
        (dict(head_dim=127), 'head_dim 127 even'),
        (dict(rms_norm_eps=None), 'rms_norm_eps is missing'),
        (dict(tie_word_embeddings='no'), "tie_word_embeddings is 'no'"),
        (dict(partial_rotary_factor=0.5), 'partial_rotary_factor is 0.5'),
        (rope(type='dynamic', factor=2.0), "'dynamic' is not implemented"),
        (rope(rope_type='longrope', factor=2.0), "'longrope' is not impl"),
        (rope(type='linear'), 'factor is missing'),
        (rope(type='linear', factor=2.0, low=1), r"\('low', 1\) is not known"),
        (rope(rope_type='llama3', factor=2.0), 'low_freq_factor is missing'),
        (rope(**YARN, mscale=0.7), 'mscale is 0.7; only None'),
        (rope(**YARN, mscale_all_dim=1.0), 'mscale_all_dim is 1.0'),
        (rope(**YARN, truncate=False), 'truncate is False; only True'),
        (rope(type='default', rope_theta=5.0), 'both 1000000.0 and.* 5.0'),
        (rope(partial_rotary_factor=0.5), 'partial_rotary_factor must be 1'),
        (dict(original_max_position_embeddings=9), 'embeddings .9. is not'),
    ],
)
def test_refuses(change, message):
  with pytest.raises(errors.CheckpointError, match=message):
    hf_config.read(QWEN2_5_7B | change)


@pytest.mark.parametrize('raw', [LLAMA3_1_8B, QWEN3_8B])
def test_refuses_biases_of_other_families(raw):
  with pytest.raises(errors.CheckpointError, match='attention_bias is True'):
    hf_config.read(raw | dict(attention_bias=True))


def test_qwen3_must_state_its_head_dim():
  raw = {k: v for k, v in QWEN3_8B.items() if k != 'head_dim'}
  with pytest.raises(errors.CheckpointError, match='head_dim is missing'):
    hf_config.read(raw)


def test_max_positions_missing():
  raw = QWEN2_5_7B | dict(max_position_embeddings=None)
  with pytest.raises(errors.CheckpointError, match='embeddings is missing'):
    hf_config.max_positions(raw)
