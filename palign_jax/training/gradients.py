"""Gradients by part, in the order in which a backward pass makes them.

What is computed from something not finite is not finite either, so the first
part that is not stands where the trouble began: the head comes before the last
layer, this one before the first, and the embedding last (with a tied head's
share, as the sum of both is not there before).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

_STACKED = 'layers'
_TREE = ('lm_head', 'final_norm', _STACKED)
_LAYER = (
    *('down', 'gate', 'up', 'mlp_norm', 'o'),
    *('v', 'k_norm', 'k', 'q_norm', 'q', 'attn_norm'),
)
_PROJECTION = ('lora_b', 'lora_a')


def squares(grads: Any) -> Float[Array, ' parts']:
  """Returns each part's sum of squares; a part is a leaf, or one layer's."""
  sums = []
  for path, grad in jax.tree_util.tree_leaves_with_path(grads):
    kept = int(_is_stacked(_keys(path)))
    total = jnp.sum(grad * grad, axis=tuple(range(kept, grad.ndim)))
    sums.append(total.reshape(-1))
  order = np.array([place for _, place, _ in _parts(grads)], np.int32)
  return jnp.concatenate(sums)[order]


def names(params: Any) -> list[str]:
  """Returns what each of the `squares` of such gradients belongs to."""
  return [name for _, _, name in _parts(params)]


def _parts(tree: Any) -> list[tuple[tuple[int, ...], int, str]]:
  """Returns rank, place in the tree and name of every part, by rank."""
  parts = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    keys = _keys(path)
    name = '/'.join(keys)
    if not _is_stacked(keys):
      parts.append((_rank(keys, 0), len(parts), name))
      continue
    for layer in range(leaf.shape[0]):
      name_here = f'{name} of layer {layer}'
      parts.append((_rank(keys, layer), len(parts), name_here))
  return sorted(parts)


def _rank(keys: list[str], layer: int) -> tuple[int, ...]:
  at = lambda order, key: order.index(key) if key in order else len(order)
  inside = keys[1] if _is_stacked(keys) else ''
  return (
      at(_TREE, keys[0]),
      -layer,
      at(_LAYER, inside),
      at(_PROJECTION, keys[-1]),
  )


def _keys(path: Any) -> list[str]:
  return jax.tree_util.keystr(path, simple=True, separator='/').split('/')


def _is_stacked(keys: list[str]) -> bool:
  return keys[0] == _STACKED and len(keys) > 1
