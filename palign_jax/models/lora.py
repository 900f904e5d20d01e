"""Low-rank adapters on projections of every layer, all seven or some.

Source: Hu et al. 2021, arXiv 2106.09685; scale alpha / rank as in PEFT.
Adapters are a tree of their own, float32, beside frozen weights of any dtype.
"""

from collections.abc import Collection
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from palign_jax.models import config as config_lib, decoder

PROJECTIONS = decoder.PROJECTIONS


def init(
    config: config_lib.ModelConfig,
    rank: int,
    key: jax.Array,
    targets: Collection[str] = PROJECTIONS,
) -> decoder.Params:
  """Returns adapters that change nothing yet: B is zero, A is random.

  A is uniform within 1 / sqrt(fan in), which is PEFT's initialisation.

  Args:
    config: The model.
    rank: Of all adapters.
    key: Of the draw.
    targets: The projections that get one.
  """
  shapes = decoder.abstract(config, jnp.float32)['layers']
  adapters = {}
  for name in PROJECTIONS:
    _, *shape = shapes[name]['kernel'].shape
    cut = 2 if name == 'o' else 1
    into, out = tuple(shape[:cut]), tuple(shape[cut:])
    key, draw = jax.random.split(key)
    if name not in targets:
      continue
    bound = 1 / math.sqrt(math.prod(into))
    adapters[name] = {
        'lora_a': jax.random.uniform(
            draw,
            (config.num_layers, *into, rank),
            jnp.float32,
            minval=-bound,
            maxval=bound,
        ),
        'lora_b': jnp.zeros((config.num_layers, rank, *out), jnp.float32),
    }
  return {'layers': adapters}


def logical_axes(
    config: config_lib.ModelConfig,
    rank: int,
    targets: Collection[str] = PROJECTIONS,
) -> decoder.Params:
  """Returns the names of the axes of each adapter's parameters."""
  axes = decoder.logical_axes(config, rank)['layers']
  keep = lambda tree: {k: v for k, v in tree.items() if k.startswith('lora_')}
  names = [name for name in PROJECTIONS if name in targets]
  return {'layers': {name: keep(axes[name]) for name in names}}


def join(params: Any, adapters: Any) -> Any:
  """Returns one tree of what either holds (no copies).

  Layers are stacked in both, or unstacked in both; either may be empty.
  """
  if isinstance(params, tuple):
    return tuple(map(join, params, adapters))
  both = {k: join(params[k], adapters[k]) for k in params.keys() & adapters}
  return {**params, **adapters, **both}


def merge(
    params: Any, adapters: Any, scale: float, dtype: DTypeLike | None = None
) -> decoder.Params:
  """Returns weights that alone do what base and adapters do together.

  Args:
    params: Stacked weights.
    adapters: Of the same model.
    scale: alpha / rank.
    dtype: Of the result; None is that of `params`.

  Returns:
    The weights; each sum is float32 before it is cast, once.
  """

  def add(layer):
    kernel, lora_a, lora_b = layer
    product = jnp.tensordot(lora_a, lora_b, 1)
    total = kernel.astype(jnp.float32) + product * jnp.float32(scale)
    return total.astype(dtype or kernel.dtype)

  merged = dict(params['layers'])
  for name, adapter in adapters['layers'].items():
    layers = merged[name]['kernel'], adapter['lora_a'], adapter['lora_b']
    kernel = jax.lax.map(add, layers)  # One float32 layer at a time.
    merged[name] = {**merged[name], 'kernel': kernel}
  whole = {**params, 'layers': merged}
  return (
      whole if dtype is None else jax.tree.map(lambda x: x.astype(dtype), whole)
  )
