"""Fields of a config.json that the importer does not turn into the model.

Whatever stands neither here nor in `hf_config.py` or `hf_rope.py` is refused,
so that no field which changes the output is passed over in silence.
"""

from collections.abc import Mapping
from typing import Any

from palign_jax.core import errors

# Carried from the imported config to the exported one, and not acted on.
PASSED = (
    # Token ids: the tokenizer and generation_config.json decide.
    'bos_token_id',
    'eos_token_id',
    'pad_token_id',
    'unk_token_id',
    'sep_token_id',
    'decoder_start_token_id',
    # Read by the importer, but not part of the function that the model is.
    'max_position_embeddings',
    # They bear on training only.
    'initializer_range',
    'attention_dropout',
    # How a library runs the same function.
    'use_cache',
    'pretraining_tp',
    'use_bfloat16',
    'return_dict',
    'output_attentions',
    'output_hidden_states',
    '_attn_implementation',
    '_attn_implementation_autoset',
    # Read only where a sliding window is on, and that is refused.
    'sliding_window',
    'max_window_layers',
    # Notes on where the folder comes from.
    '_name_or_path',
    '_commit_hash',
    'transformers_version',
    'transformers.js_config',
    'is_llama_config',
    'unsloth_fixed',
    'unsloth_version',
)
# They change the function.  These values leave it as it is implemented here;
# a config.json without the field means the first of them.
FIXED: Mapping[str, tuple[Any, ...]] = {
    'hidden_act': ('silu',),
    'attention_bias': (False, None),  # On all four; Qwen2's three are built in.
    'mlp_bias': (False, None),
    'use_sliding_window': (False, None),
    'use_mrope': (False, None),
    'rope_interleaved': (False, None),
    'partial_rotary_factor': (1, None),
    'is_encoder_decoder': (False,),
    'add_cross_attention': (False,),
    'quantization_config': (None,),
}


def check_fixed(raw: Mapping[str, Any]) -> None:
  """Raises if the config asks for what the decoder does not implement.

  Raises:
    CheckpointError: If so; names the field and its value.
  """
  for name, allowed in FIXED.items():
    if name in raw and raw[name] not in allowed:
      raise errors.CheckpointError(
          f'config.json: {name} is {raw[name]!r}; only'
          f' {allowed[0]!r} is implemented.'
      )
  for kind in raw.get('layer_types') or ():
    if kind != 'full_attention':
      raise errors.CheckpointError(
          f'config.json: layer_types holds {kind!r}; only full_attention is'
          ' implemented.'
      )


def check_known(raw: Mapping[str, Any], read: tuple[str, ...]) -> None:
  """Raises if a field is neither `read` by the importer nor listed above.

  Raises:
    CheckpointError: If so; names the field and its value.
  """
  known = {*read, *PASSED, *FIXED, 'layer_types'}
  for name, value in raw.items():
    if name not in known:
      raise errors.CheckpointError(
          f'config.json: {name} ({value!r}) is not known here; if it does not'
          ' bear on inference, remove it from the file.'
      )


def number(
    raw: Mapping[str, Any], name: str, kind: type[int] | type[float], at: str
) -> Any:
  """Returns a positive number.

  Args:
    raw: Where it stands.
    name: Its field.
    kind: int, or float, which takes whole numbers too.
    at: Place of `raw`, for messages.

  Raises:
    CheckpointError: If the field is missing, no number of that kind, or not
      positive.
  """
  if raw.get(name) is None:
    raise errors.CheckpointError(f'{at}: {name} is missing.')
  value = raw[name]
  good = isinstance(value, int if kind is int else int | float)
  if not good or isinstance(value, bool) or not 0 < value < float('inf'):
    raise errors.CheckpointError(
        f'{at}: {name} is {value!r}; it must be a positive {kind.__name__}.'
    )
  return kind(value)
