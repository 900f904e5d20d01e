"""Which mesh axis each logical axis is split over.

The model names axes for what they are ('embed', 'mlp'); the mesh names them
for what they do ('fsdp', 'tensor').  The two vocabularies meet in this table
and nowhere else.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from palign_jax.core import errors

Split = tuple[str, ...]  # Mesh axes that one logical axis is split over.
RULES: Mapping[str, Split] = {
    # Parameters.
    'vocab': ('tensor',),
    'embed': ('fsdp', 'sequence'),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'head_dim': (),
    'mlp': ('tensor',),
    'layers': (),
    'rank': (),
    # Of arrays without an axis that is split over fsdp: adapters, whose ranks
    # are too few, and the steps of int8 kernels; see _OPTIONAL.
    'small_head_dim': ('fsdp', 'sequence'),
    'small_mlp': ('tensor', 'fsdp', 'sequence'),
    # Activations.
    'act_batch': ('data', 'fsdp'),
    'act_time': ('sequence',),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_kv_heads': ('tensor',),
    'act_mlp': ('tensor',),
    'act_vocab': ('tensor',),
}
# Split as far as their sizes allow: what they belong to is small.
_OPTIONAL = ('small_head_dim', 'small_mlp')


def spec(*axes: str | None) -> PartitionSpec:
  """Returns how an array with axes of these logical names is split.

  Args:
    axes: None for one that is not.
  """
  return PartitionSpec(*(axis and RULES[axis] for axis in axes))


def sharding(
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    mesh: Mesh | AbstractMesh,
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
    split = tuple(a for a in RULES[axis] if mesh.shape.get(a, 1) > 1)
    ways = math.prod(mesh.shape[a] for a in split)
    while axis in _OPTIONAL and size % ways:
      *split, last = split
      ways //= mesh.shape[last]
    split = tuple(split)
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


def tree_shardings(abstract: Any, axes: Any, mesh: Mesh | AbstractMesh) -> Any:
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


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where activations live; hashable, so it may be a static argument.

  Attributes:
    mesh: The devices; None leaves all to the compiler.
  """

  mesh: Mesh | None = None

  def __call__(self, x: jax.Array, *axes: str) -> jax.Array:
    """Returns `x` where the table puts axes of these logical names."""
    if self.mesh is None or self.mesh.size == 1:
      return x
    spec = [
        tuple(a for a in RULES[axis] if self.mesh.shape.get(a, 1) > 1) or None
        for axis in axes
    ]
    # What does not split evenly, as a batch of one row, is the compiler's.
    ways = lambda split: math.prod(self.mesh.shape[a] for a in split or ())
    fits = [
        PartitionSpec.UNCONSTRAINED if size % ways(split) else split
        for size, split in zip(x.shape, spec, strict=True)
    ]
    where = NamedSharding(self.mesh, PartitionSpec(*fits))
    return jax.lax.with_sharding_constraint(x, where)

  @property
  def splits_rows(self) -> bool:
    """Whether the tokens of a row lie on several devices."""
    return self.mesh is not None and self.mesh.shape.get('sequence', 1) > 1


ANYWHERE = Layout()
