"""Which mesh axis each logical axis is split over.

The model names axes for what they are ('embed', 'mlp'); the mesh names them
for what they do ('fsdp', 'tensor').  The two vocabularies meet in this table
and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from palign_jax.core import errors

Split = tuple[str, ...]  # Mesh axes that one logical axis is split over.
RULES: Mapping[str, Split] = {
    # Parameters.
    'vocab': ('tensor',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'layers': (),
    'rank': (),
    # Activations.
    'act_batch': ('data', 'fsdp'),
    'act_time': (),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_kv_heads': ('tensor',),
    'act_mlp': ('tensor',),
    'act_vocab': ('tensor',),
}


def sharding(
    name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh
) -> NamedSharding:
  """Returns where one array lives.

  Args:
    name: Its path, e.g. 'layers/up/kernel', for messages.
    shape: Its shape.
    axes: The logical name of each axis of `shape`.
    mesh: The devices.

  Raises:
    ConfigError: If an axis has no rule or does not split evenly, or if two
      axes of the array go to the same mesh axis.
  """
  spec, used = [], set()
  for size, axis in zip(shape, axes, strict=True):
    if axis not in RULES:
      raise errors.ConfigError(
          f'{name}: axis {axis!r} has no sharding rule; {sorted(RULES)} do.'
      )
    split = tuple(a for a in RULES[axis] if mesh.shape[a] > 1)
    ways = 1
    for mesh_axis in split:
      ways *= mesh.shape[mesh_axis]
    if size % ways:
      raise errors.ConfigError(
          f'{name}: axis {axis!r} of size {size} does not split {ways} ways'
          f' over {split}; change config.mesh.'
      )
    if used & set(split):
      raise errors.ConfigError(
          f'{name}: two of its axes {axes} go to mesh axis'
          f' {sorted(used & set(split))}.'
      )
    used |= set(split)
    spec.append(split or None)
  return NamedSharding(mesh, PartitionSpec(*spec))


def tree_shardings(abstract: Any, axes: Any, mesh: Mesh) -> Any:
  """Returns where each array of a tree lives.

  Args:
    abstract: Arrays or `ShapeDtypeStruct`s.
    axes: The same tree with a tuple of logical names at each array.
    mesh: The devices.
  """

  def one(path, x, names):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    return sharding(name, x.shape, names, mesh)

  # `abstract` comes first, so that the tuples of names count as leaves.
  return jax.tree_util.tree_map_with_path(one, abstract, axes)
