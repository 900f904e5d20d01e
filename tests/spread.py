"""What lies where on a mesh, and what devices send one another."""

import math
import re

import jax

from palign_jax.models import decoder
from palign_jax.parallel import rules

# Norms and biases of the tests' models are smaller: they may lie whole.
SMALL = 256
_SENDS = re.compile(
    r'= (.*?) (?:all-gather|all-reduce|all-to-all|reduce-scatter'
    r'|collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\('
)


def weights_are_split(params, config, mesh) -> None:
  """Asserts that each weight lies as the rules say, none whole but the small.

  Args:
    params: Unstacked, as the model or as the sampler has them.
    config: The model.
    mesh: Where they lie.
  """
  names = decoder.logical_axes(config)
  most = mesh.shape['fsdp'] * mesh.shape['tensor']
  held: dict[jax.Device, int] = {}
  total = small = 0
  for path, x in jax.tree_util.tree_leaves_with_path(params):
    keys = [getattr(key, 'key', getattr(key, 'idx', None)) for key in path]
    axes = names
    for key in keys:
      axes = axes if isinstance(key, int) else axes[key]
    split = {a for name in axes for a in rules.RULES[name]}
    ways = math.prod(mesh.shape[axis] for axis in split)
    at = jax.tree_util.keystr(path)
    assert len(x.addressable_shards) == mesh.size, at
    for shard in x.addressable_shards:
      assert shard.data.nbytes * ways == x.nbytes, at
      held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    if x.size < SMALL:
      small += x.nbytes
    else:
      assert ways == most, (at, x.sharding)
      total += x.nbytes
  # All that a device holds: its share, and of the small no more than all.
  assert total / most <= min(held.values())
  assert max(held.values()) <= total / most + small
  assert small < total / 8


def cache_is_split(cache, mesh) -> None:
  """Asserts that no key or value lies on two devices."""
  held: dict[jax.Device, int] = {}
  leaves = jax.tree.leaves(cache)
  for x in leaves:
    for shard in x.addressable_shards:
      held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    indices = {str(shard.index) for shard in x.addressable_shards}
    assert len(indices) == mesh.size
  total = sum(x.nbytes for x in leaves)
  assert len(held) == mesh.size
  assert set(held.values()) == {total // mesh.size}


def sent(program: str) -> list[tuple[int, ...]]:
  """Returns the shapes of all that a compiled program's devices send."""
  return [
      tuple(int(n) for n in shape.split(',') if n)
      for line in program.splitlines()
      for result in _SENDS.findall(line)
      for shape in re.findall(r'\w+\[([\d,]*)\]', result)
  ]


def no_cache_is_sent(program: str, cache, block: int) -> None:
  """Asserts that devices send one another no part of a cache.

  Weights and activations travel; that a shape is theirs shows in its having no
  axis of slots.

  Args:
    program: As a compiled program's text.
    cache: Whose slots no other axis is as long as.
    block: How many slots are read at a time.
  """
  *_, head_dim, slots = cache[0][0].shape
  for shape in sent(program):
    assert slots not in shape, shape
    is_block = {block, head_dim} <= set(shape[-2:])
    assert not is_block or len(shape) < 3, shape
