"""Weights as decoding reads them: by layer, and on a CPU transposed.

XLA's products on a CPU sum in another order for few rows than for many, unless
both operands are contracted along their last axis: then a row's bits are the
same beside any number of rows (2 or more), and products of few rows are faster
too.  So on a CPU the kernels are kept as [out, in], which is a second copy of
them there; elsewhere weights that are unstacked are taken as they lie.
"""

import functools
import math

import jax
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from palign_jax.models import config as config_lib, decoder

_KERNELS = ('kernel', 'lora_a', 'lora_b')


def pack(params: decoder.Params, platform: str) -> decoder.Params:
  """Returns the weights as `unpack` takes them, each where it lay."""
  params = decoder.unstack(params)
  if platform != 'cpu':
    return params

  def place(x, into):
    if not isinstance(x.sharding, NamedSharding):
      return x.sharding
    mesh, axes = x.sharding.mesh, x.sharding.spec
    axes = (*axes, *(None,) * (x.ndim - len(axes)))
    # Of axes that are put together only the first is ever split.
    return NamedSharding(mesh, PartitionSpec(axes[into], axes[0]))

  def turn(path, x):
    into = _num_inputs(path)
    return _turner(into, place(x, into))(x) if into else x

  return jax.tree_util.tree_map_with_path(turn, params)


@functools.lru_cache(maxsize=64)
def _turner(into: int, where: Sharding):
  """Returns what turns a kernel; kept, as what it compiles goes with it."""

  def turn(x):
    return x.reshape(math.prod(x.shape[:into]), -1).T

  return jax.jit(turn, out_shardings=where)


def unpack(
    params: decoder.Params, config: config_lib.ModelConfig, platform: str
) -> decoder.Params:
  """Returns the weights as the model takes them; to be called under jit."""
  if platform != 'cpu':
    return params

  def turn(path, x):
    if not _num_inputs(path):
      return x
    *_, name, kind = _names(path)
    heads = lambda size: (size // config.head_dim, config.head_dim)
    out, into = map(lambda size: (size,), x.shape)
    if name == 'o' and kind != 'lora_b':
      into = heads(*into)
    if name in ('q', 'k', 'v') and kind != 'lora_a':
      out = heads(*out)
    return x.T.reshape(*into, *out)

  return jax.tree_util.tree_map_with_path(turn, params)


def _names(path) -> tuple[str, ...]:
  return tuple(
      jax.tree_util.keystr(path, simple=True, separator='/').split('/')
  )


def _num_inputs(path) -> int:
  """Returns how many axes a kernel contracts; 0 if it is no kernel."""
  *_, name, kind = _names(path)
  if kind not in _KERNELS:
    return 0
  return 2 if name == 'o' and kind != 'lora_b' else 1
