"""The rotary embedding's fields in a config.json, of both generations.

On the Hub they are `rope_theta` and `rope_scaling`; transformers 5 writes one
`rope_parameters`.  Missing numbers are filled in as transformers does, and
only where the format says what a missing one means.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from palign_jax.checkpoints import hf_fields
from palign_jax.core import errors
from palign_jax.models import config as config_lib

FIELDS = ('rope_theta', 'rope_scaling', 'rope_parameters')
_AT = 'config.json, rope'
# Llama 2 states no theta; all families here then mean this one.
_DEFAULT_THETA = 10000.0
# Names in the file of the numbers of each kind; ours are the dataclass's.
_NAMES = {'original_max_positions': 'original_max_position_embeddings'}
_KINDS = {
    'linear': config_lib.LinearScaling,
    'llama3': config_lib.Llama3Scaling,
    'yarn': config_lib.YarnScaling,
}
# They change YaRN; these values do not.
_YARN_FIXED = {
    'mscale': (None,),
    'mscale_all_dim': (None,),
    'truncate': (True, None),
}


def read(
    raw: Mapping[str, Any],
) -> tuple[float, config_lib.RopeScaling | None]:
  """Returns rope_theta and the scaling.

  Raises:
    CheckpointError: If a field is unknown, missing or out of range, or the
      kind of scaling is not implemented.
  """
  fields = dict(raw.get('rope_scaling') or raw.get('rope_parameters') or {})
  fields.pop('type', None) if 'rope_type' in fields else None
  kind = fields.pop('rope_type', fields.pop('type', 'default'))
  theta = _theta(raw, fields)
  if fields.pop('partial_rotary_factor', None) not in (1, None):
    raise errors.CheckpointError(
        f'{_AT}: partial_rotary_factor must be 1; nothing else is implemented.'
    )
  if kind == 'default':
    scaling = None
  elif kind in _KINDS:
    scaling = _scaling(kind, fields, raw)
  else:
    raise errors.CheckpointError(
        f'{_AT}: type {kind!r} is not implemented; default,'
        f' {", ".join(_KINDS)} are.'
    )
  if fields:
    raise errors.CheckpointError(
        f'{_AT}: {", ".join(map(repr, fields.items()))} is not known for type'
        f' {kind!r}.'
    )
  return theta, scaling


def _theta(raw: Mapping[str, Any], fields: dict[str, Any]) -> float:
  inner, outer = fields.pop('rope_theta', None), raw.get('rope_theta')
  if None not in (inner, outer) and inner != outer:
    raise errors.CheckpointError(
        f'{_AT}: rope_theta is both {outer!r} and, in rope_parameters,'
        f' {inner!r}.'
    )
  theta = next((x for x in (inner, outer) if x is not None), _DEFAULT_THETA)
  return hf_fields.number({'rope_theta': theta}, 'rope_theta', float, _AT)


def _scaling(
    kind: str, fields: dict[str, Any], raw: Mapping[str, Any]
) -> config_lib.RopeScaling:
  """Builds the scaling, and takes what it has read out of `fields`."""
  values = {k: v for k, v in fields.items() if v is not None}
  if kind == 'yarn':
    for name, allowed in _YARN_FIXED.items():
      if fields.pop(name, None) not in allowed:
        raise errors.CheckpointError(
            f'{_AT}: {name} is {values[name]!r}; only {allowed[0]!r} is'
            ' implemented.'
        )
    factor = hf_fields.number(values, 'factor', float, _AT)
    # Defaults of the paper's authors, which the format relies on.
    values = {
        'original_max_position_embeddings': raw.get('max_position_embeddings'),
        'beta_fast': 32.0,
        'beta_slow': 1.0,
        'attention_factor': 0.1 * math.log(max(factor, 1.0)) + 1.0,
    } | values
  numbers = {}
  for field in dataclasses.fields(_KINDS[kind]):
    name = _NAMES.get(field.name, field.name)
    numbers[field.name] = hf_fields.number(values, name, field.type, _AT)
    fields.pop(name, None)
  return _KINDS[kind](**numbers)


def write(
    theta: float, scaling: config_lib.RopeScaling | None
) -> dict[str, Any]:
  """Returns the fields as on the Hub; transformers 4 and 5 both read them."""
  if scaling is None:
    return {'rope_theta': theta, 'rope_scaling': None}
  kinds = {cls: kind for kind, cls in _KINDS.items()}
  values = dataclasses.asdict(scaling)
  named = {_NAMES.get(name, name): value for name, value in values.items()}
  scaling_fields = {'rope_type': kinds[type(scaling)], **named}
  return {'rope_theta': theta, 'rope_scaling': scaling_fields}


def reach(max_positions: int, scaling: config_lib.RopeScaling | None) -> int:
  """Returns how many positions the model is meant for, in tokens.

  Linear scaling and YaRN are switched on in a config.json without a change to
  its `max_position_embeddings` (so Qwen2.5's and Qwen3's model cards say), and
  stretch it.  Llama 3.1 states the stretched number itself.

  Args:
    max_positions: `max_position_embeddings`.
    scaling: Of the same config.json.
  """
  match scaling:
    case config_lib.LinearScaling(factor):
      return int(max_positions * factor)
    case config_lib.YarnScaling(factor, original):
      return max(max_positions, int(original * factor))
  return max_positions
