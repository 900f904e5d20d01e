"""Small random checkpoints of every family, as transformers writes them.

Their configs differ from each other in every number.
"""

import dataclasses
import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import torch
import transformers

from palign_jax.checkpoints import hf_import
from palign_jax.models import decoder

torch.set_num_threads(1)  # The machine's cores are shared.

# config.json as on the Hub; what all have in common is added below.
FAMILIES = {
    'qwen2_tied': dict(
        architectures=['Qwen2ForCausalLM'],
        model_type='qwen2',
        vocab_size=104,
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_theta=1000000.0,
        tie_word_embeddings=True,
        sliding_window=131072,
        use_sliding_window=False,
        max_window_layers=2,
    ),
    'qwen2': dict(
        architectures=['Qwen2ForCausalLM'],
        model_type='qwen2',
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        rms_norm_eps=2e-5,
        rope_theta=300000.0,
        tie_word_embeddings=False,
    ),
    'qwen3': dict(
        architectures=['Qwen3ForCausalLM'],
        model_type='qwen3',
        vocab_size=89,
        hidden_size=40,
        intermediate_size=72,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=20,
        rms_norm_eps=3e-4,
        rope_theta=5000000.0,
        tie_word_embeddings=False,
        attention_bias=False,
    ),
    'llama2': dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        vocab_size=83,
        hidden_size=36,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=6,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    ),
    'llama3': dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        vocab_size=107,
        hidden_size=50,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=5,
        num_key_value_heads=5,
        rms_norm_eps=5e-5,
        rope_theta=500000.0,
        rope_scaling=dict(
            rope_type='llama3',
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=40,
        ),
        tie_word_embeddings=True,
    ),
    'yarn': dict(
        architectures=['Qwen2ForCausalLM'],
        model_type='qwen2',
        vocab_size=103,
        hidden_size=56,
        intermediate_size=88,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        rms_norm_eps=7e-6,
        rope_theta=20000.0,
        rope_scaling=dict(
            type='yarn', factor=4.0, original_max_position_embeddings=512
        ),
        tie_word_embeddings=False,
    ),
    'linear': dict(
        architectures=['LlamaForCausalLM'],
        model_type='llama',
        vocab_size=109,
        hidden_size=44,
        intermediate_size=68,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        rms_norm_eps=9e-5,
        rope_theta=40000.0,
        rope_scaling=dict(type='linear', factor=2.5),
        tie_word_embeddings=False,
    ),
}
COMMON = dict(
    hidden_act='silu',
    max_position_embeddings=512,
    attention_dropout=0.0,
    bos_token_id=1,
    eos_token_id=None,
    torch_dtype='float32',
    transformers_version='4.43.1',
    use_cache=True,
)
TOKENS = torch.randint(0, 80, (2, 40), generator=torch.manual_seed(5))


@dataclasses.dataclass(frozen=True)
class Case:
  """The same weights in transformers, on disk and here."""

  folder: pathlib.Path
  torch_model: transformers.PreTrainedModel
  model: hf_import.Model


@functools.partial(jax.jit, static_argnames=('config', 'lora_scale'))
def forward(params, config, tokens, lora_scale=0.0):
  positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  x = decoder.hidden(
      params,
      config,
      tokens,
      positions,
      None,
      dtype=jnp.float32,
      lora_scale=lora_scale,
  )
  return decoder.logits(params, config, x)


def logits(params, config, lora_scale=0.0):
  """Our logits of TOKENS."""
  tokens = jnp.asarray(TOKENS.numpy(), jnp.int32)
  return forward(params, config, tokens, lora_scale)


def torch_logits(model):
  """Those of transformers, or of peft."""
  with torch.no_grad():
    return model.eval()(TOKENS).logits.numpy()


def randomize(model):
  """Gives every weight a size at which an error in it would show."""
  generator = torch.manual_seed(0)
  for name, weight in model.named_parameters():
    mean = 1.0 if 'norm' in name else 0.0
    std = 0.3 if weight.ndim == 1 else 1.0 / weight.shape[-1] ** 0.5
    weight.data.normal_(mean, std, generator=generator)


def write_tokenizer(folder):
  """A tokenizer's files; only their bytes matter here."""
  folder.mkdir(exist_ok=True)
  (folder / 'tokenizer.json').write_text('{"model": "é"}')
  (folder / 'tokenizer_config.json').write_text('{}')
  return folder


def make(name, folder):
  """Writes a family's checkpoint into `folder` and loads it back."""
  raw = FAMILIES[name] | COMMON
  (folder / 'config.json').write_text(json.dumps(raw))
  config = transformers.AutoConfig.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_config(config)
  randomize(model)
  model.save_pretrained(folder)
  # transformers has rewritten the config in its own way; have the Hub's again.
  (folder / 'config.json').rename(folder / 'config_v5.json')
  (folder / 'config.json').write_text(json.dumps(raw))
  return Case(folder, model, hf_import.load(folder, dtype=jnp.float32))
