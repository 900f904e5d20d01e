"""Between a Hugging Face config.json and a ModelConfig.

Every field is read, known to be without effect, or refused by name.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from palign_jax.checkpoints import hf_fields, hf_rope
from palign_jax.core import errors
from palign_jax.models import config as config_lib

_AT = 'config.json'
_READ = (
    'architectures',
    'model_type',
    'vocab_size',
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'num_key_value_heads',
    'head_dim',
    'rms_norm_eps',
    'tie_word_embeddings',
    'torch_dtype',  # The tensors say themselves what they are.
    'dtype',
    *hf_rope.FIELDS,
)


@dataclasses.dataclass(frozen=True)
class _Family:
  """What an architecture's name says and its config.json does not."""

  model_type: str
  qkv_bias: bool
  qk_norm: bool
  states_head_dim: bool  # Its head_dim does not follow from other fields.


_FAMILIES = {
    'Qwen2ForCausalLM': _Family('qwen2', True, False, False),
    'Qwen3ForCausalLM': _Family('qwen3', False, True, True),
    'LlamaForCausalLM': _Family('llama', False, False, False),
}


def read(raw: Mapping[str, Any]) -> config_lib.ModelConfig:
  """Returns the model that a config.json describes.

  Args:
    raw: As on the Hub, or as transformers 5 writes it.

  Raises:
    CheckpointError: If the architecture is unknown, or a field is unknown,
      missing, or asks for what is not implemented; names it and its value.
  """
  family = _family(raw)
  hf_fields.check_known(raw, _READ)
  hf_fields.check_fixed(raw)
  whole = lambda name: hf_fields.number(raw, name, int, _AT)
  num_heads, embed_dim = whole('num_attention_heads'), whole('hidden_size')
  if raw.get('head_dim') is not None or family.states_head_dim:
    head_dim = whole('head_dim')
  elif embed_dim % num_heads == 0:
    head_dim = embed_dim // num_heads
  else:
    raise errors.CheckpointError(
        f'{_AT}: hidden_size {embed_dim} does not split over'
        f' num_attention_heads {num_heads}, and head_dim is missing.'
    )
  num_kv_heads = num_heads  # Llama 1 and the smaller Llama 2 do not say.
  if raw.get('num_key_value_heads') is not None:
    num_kv_heads = whole('num_key_value_heads')
  if num_heads % num_kv_heads or head_dim % 2:
    raise errors.CheckpointError(
        f'{_AT}: num_attention_heads {num_heads} must be a multiple of'
        f' num_key_value_heads {num_kv_heads}, and head_dim {head_dim} even.'
    )
  theta, scaling = hf_rope.read(raw)
  return config_lib.ModelConfig(
      vocab_size=whole('vocab_size'),
      num_layers=_num_layers(raw),
      embed_dim=embed_dim,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=head_dim,
      mlp_dim=whole('intermediate_size'),
      norm_eps=hf_fields.number(raw, 'rms_norm_eps', float, _AT),
      rope_theta=theta,
      rope_scaling=scaling,
      qkv_bias=family.qkv_bias,
      qk_norm=family.qk_norm,
      tied=_tied(raw),
  )


def _family(raw: Mapping[str, Any]) -> _Family:
  names = raw.get('architectures') or ()
  if len(names) != 1 or names[0] not in _FAMILIES:
    raise errors.CheckpointError(
        f'{_AT}: architectures is {raw.get("architectures")!r}; known are'
        f' {", ".join(_FAMILIES)}.'
    )
  family = _FAMILIES[names[0]]
  if raw.get('model_type', family.model_type) != family.model_type:
    raise errors.CheckpointError(
        f'{_AT}: model_type is {raw["model_type"]!r}, but {names[0]} is'
        f' {family.model_type!r}.'
    )
  return family


def _num_layers(raw: Mapping[str, Any]) -> int:
  num_layers = hf_fields.number(raw, 'num_hidden_layers', int, _AT)
  kinds = raw.get('layer_types')
  if kinds is not None and len(kinds) != num_layers:
    raise errors.CheckpointError(
        f'{_AT}: layer_types has {len(kinds)} entries for num_hidden_layers'
        f' {num_layers}.'
    )
  return num_layers


def _tied(raw: Mapping[str, Any]) -> bool:
  tied = raw.get('tie_word_embeddings', False)
  if not isinstance(tied, bool):
    raise errors.CheckpointError(
        f'{_AT}: tie_word_embeddings is {tied!r}; it must be true or false.'
    )
  return tied


def max_positions(raw: Mapping[str, Any]) -> int:
  """Returns how many positions the model is meant for, in tokens.

  Raises:
    CheckpointError: If max_position_embeddings is missing or no number.
  """
  stated = hf_fields.number(raw, 'max_position_embeddings', int, _AT)
  return hf_rope.reach(stated, hf_rope.read(raw)[1])


def write(
    config: config_lib.ModelConfig, raw: Mapping[str, Any], dtype: str
) -> dict[str, Any]:
  """Returns a config.json that transformers 4 and 5 both load.

  Args:
    config: The model.
    raw: The config.json it came from; of it the fields without effect are
      passed through.  For a model trained from nothing, max_position_embeddings
      and the token ids.
    dtype: Name of the exported tensors' dtype.

  Raises:
    CheckpointError: If no architecture has this mix of biases and norms, or
      `raw` has no max_position_embeddings.
  """
  hf_fields.number(raw, 'max_position_embeddings', int, _AT)
  kind = (config.qkv_bias, config.qk_norm)
  fitting = [
      (name, family)
      for name, family in _FAMILIES.items()
      if (family.qkv_bias, family.qk_norm) == kind
  ]
  if not fitting:
    raise errors.CheckpointError(
        f'No architecture has qkv_bias={config.qkv_bias} together with'
        f' qk_norm={config.qk_norm}; known are {", ".join(_FAMILIES)}.'
    )
  ((architecture, family),) = fitting
  kept = (*hf_fields.PASSED, *hf_fields.FIXED)
  return {
      'architectures': [architecture],
      'model_type': family.model_type,
      'hidden_act': 'silu',
      **{name: value for name, value in raw.items() if name in kept},
      'vocab_size': config.vocab_size,
      'hidden_size': config.embed_dim,
      'intermediate_size': config.mlp_dim,
      'num_hidden_layers': config.num_layers,
      'num_attention_heads': config.num_heads,
      'num_key_value_heads': config.num_kv_heads,
      'head_dim': config.head_dim,
      'rms_norm_eps': config.norm_eps,
      **hf_rope.write(config.rope_theta, config.rope_scaling),
      'tie_word_embeddings': config.tied,
      'torch_dtype': dtype,
  }
