"""Checkpoints of random weights in named shapes, for both sides to read."""

from collections.abc import Mapping
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from palign_jax.checkpoints import hf_config, hf_export, hf_import
from palign_jax.models import decoder
from palign_jax.text import tokenizer as tokenizer_lib

_COMMON = dict(
    architectures=['Qwen2ForCausalLM'],
    model_type='qwen2',
    max_position_embeddings=65_536,  # Room for the longest trace and a prompt.
    rms_norm_eps=1e-6,
    rope_theta=1e6,
    tie_word_embeddings=True,
)
# `vocab_size` is that without a tokenizer of its own.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    'tiny': dict(  # XLA takes minutes to compile heads of 8 channels.
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        vocab_size=1024,
    ),
    '55m': dict(
        num_hidden_layers=12,
        hidden_size=512,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=2560,
        vocab_size=32_768,
    ),
    '0.5b': dict(  # Qwen2.5-0.5B's config.json.
        num_hidden_layers=24,
        hidden_size=896,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        vocab_size=151_936,
    ),
    'qwen2.5-7b': dict(  # Qwen2.5-7B's config.json.
        num_hidden_layers=28,
        hidden_size=3584,
        num_attention_heads=28,
        num_key_value_heads=4,
        intermediate_size=18_944,
        vocab_size=152_064,
        tie_word_embeddings=False,
    ),
}


def config(name: str, tokenizer_size: int, has_own: bool) -> dict[str, Any]:
  """Returns the config.json of a shape.

  Args:
    name: One of `SHAPES`.
    tokenizer_size: The tokenizer's largest id, plus one.
    has_own: Whether the vocabulary is the tokenizer's; else it is the shape's,
      if that is larger.
  """
  raw = _COMMON | SHAPES[name]
  size = -(-tokenizer_size // 128) * 128
  raw['vocab_size'] = size if has_own else max(size, raw['vocab_size'])
  return raw


def make(
    folder: epath.Path, name: str, tokenizer_folder: str, dtype: str, own: bool
) -> None:
  """Writes a model folder.

  Args:
    folder: Where.
    name: One of `SHAPES`.
    tokenizer_folder: Whose tokenizer to copy.
    dtype: Of the weights.
    own: See `config`.
  """
  raw = config(name, tokenizer_lib.load(tokenizer_folder).size, own)
  sizes = hf_config.read(raw)
  params = jax.jit(lambda key: decoder.init(sizes, key, jnp.dtype(dtype)))(
      jax.random.key(0)
  )
  model = hf_import.Model(
      config=sizes,
      params=params,
      stop_ids=(),
      max_positions=raw['max_position_embeddings'],
      raw_config=raw,
      raw_generation={},
      folder=None,
  )
  hf_export.save(folder, model, tokenizer_folder=tokenizer_folder, dtype=dtype)
