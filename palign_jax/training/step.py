"""One optimiser step: loss, gradient, clipping, update.

The loss is the weighted sum over the weight of the whole step, so neither
packing nor accumulation changes it.  A step whose loss or gradient is not
finite says so in its scalars; neither it nor a step after it changes anything
but `step`, since the loop, which stops there, has begun the next one by then.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np
import optax

from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder, lora
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import gradients, loss as loss_lib, optim

Scalars = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """What a step changes.

  Attributes:
    step: Finished optimiser steps; below zero once one was not finite.
    params: What is trained.
    opt_state: The optimiser's.
  """

  step: Any
  params: Any
  opt_state: Any


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """How a batch becomes an update.

  Attributes:
    num_microbatches: Parts of a batch computed one after the other.
  """

  num_microbatches: int


def num_microbatches(
    batch_size: int, rows_per_device: int, mesh: jax.sharding.Mesh
) -> int:
  """Returns how many parts of a batch are computed one after the other.

  Args:
    batch_size: Of `config.sft`.
    rows_per_device: Of `config.compute`.
    mesh: Rows lie over its data and fsdp.

  Raises:
    ConfigError: If they do not come out even.
  """
  at_once = rows_per_device * mesh_lib.num_row_shards(mesh)
  if batch_size % at_once:
    raise errors.ConfigError(
        f'config.sft.batch_size is {batch_size}, no multiple of the {at_once}'
        ' rows computed at once (config.compute.rows_per_device *'
        f' config.mesh.data * config.mesh.fsdp); take a multiple of {at_once}.'
    )
  return batch_size // at_once


def init(
    params: decoder.Params, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the state before the first step, sharded as `params` are.

  Args:
    params: What is trained, float32: all weights, or adapters.  Goes into the
      state, hence is donated with it.
    optimizer: From `optim.make`.
  """
  everywhere = _replicated(params)
  # Committed to its place, as what comes out of a step is: otherwise the
  # second step compiles anew.
  params = jax.tree.map(lambda x: jax.device_put(x, x.sharding), params)
  # Not under jit: zeros_like of an array takes over its sharding.
  spread = lambda x: x if _is_split(x) else jax.device_put(x, everywhere)
  opt_state = jax.tree.map(spread, optimizer.init(params))
  step = jax.device_put(np.zeros((), np.int32), everywhere)
  return TrainState(step, params, opt_state)


def abstract(
    params: Any, optimizer: optax.GradientTransformation
) -> TrainState:
  """Returns the shapes and places of what `init` would return.

  Args:
    params: Shapes of what is trained, with shardings on a mesh.
    optimizer: From `optim.make`.
  """
  everywhere = _replicated(params)
  like = dict(jax.tree_util.tree_leaves_with_path(params))

  def place(path, x):
    # What an optimiser keeps of a parameter ends in the parameter's path.
    ends = (like.get(path[i:]) for i in range(len(path)))
    found = next(
        (p for p in ends if p is not None and p.shape == x.shape), None
    )
    where = everywhere if found is None else found.sharding
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

  opt_state = jax.tree_util.tree_map_with_path(
      place, jax.eval_shape(optimizer.init, params)
  )
  step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
  return TrainState(step, params, opt_state)


def abstract_batch(
    num_microbatches: int, num_rows: int, max_tokens: int, mesh: Any
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shapes and places of a batch as `compile` passes it on."""
  shape = num_microbatches, num_rows, max_tokens
  where = _by_token(mesh)
  make = lambda dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=where)
  ints = ('tokens', 'positions', 'segments')
  return {**{k: make(jnp.int32) for k in ints}, 'weights': make(jnp.float32)}


def _by_token(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
  spec = jax.sharding.PartitionSpec(None, *mesh_lib.TOKENS)
  return jax.sharding.NamedSharding(mesh, spec)


def _is_split(x: Array) -> bool:
  return isinstance(x.sharding, jax.sharding.NamedSharding)


def _replicated(params: Any) -> jax.sharding.Sharding:
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, jax.sharding.NamedSharding):
    return jax.sharding.NamedSharding(
        sharding.mesh, jax.sharding.PartitionSpec()
    )
  return sharding


def make(
    model_config: config_lib.ModelConfig,
    loss_config: loss_lib.LossConfig,
    optimizer: optax.GradientTransformation,
    rate: optim.Schedule,
    clip_norm: float,
    where: Any = None,
) -> Callable[..., tuple[TrainState, Scalars]]:
  """Returns the pure step: (frozen, state, batch) -> (state, scalars).

  `frozen` holds the weights that are not trained, in any dtype ({} if all
  are); the arrays of `batch` are [microbatch, B, T].  Gradients are kept where
  the shardings in `where` say, a tree like that of what is trained.
  """

  def step(frozen: decoder.Params, state: TrainState, batch: loss_lib.Batch):
    weight = jnp.sum(loss_lib.targets(batch)[1])
    per_weight = 1 / jnp.where(weight > 0, weight, jnp.float32(1))

    def objective(params, micro):
      total = loss_lib.weighted_sum(
          lora.join(frozen, params), model_config, micro, loss_config
      )
      return total * per_weight

    def value_and_grad(params, micro):
      loss, grads = jax.value_and_grad(objective)(params, micro)
      return loss, _place(grads, where)

    loss, grads = _accumulate(value_and_grad, state.params, batch)
    squares = gradients.squares(grads)
    norm = jnp.sqrt(jnp.sum(squares))
    scale = jnp.minimum(jnp.float32(1), jnp.float32(clip_norm) / norm)
    grads = jax.tree.map(lambda g: g * scale, grads)
    with jax.numpy_dtype_promotion('standard'):  # Optax: beta**count.
      updates, opt_state = optimizer.update(
          grads, state.opt_state, state.params
      )
    new = TrainState(
        state.step + 1, optax.apply_updates(state.params, updates), opt_state
    )
    finite = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.step >= 0)
    scalars = {
        'loss': loss,
        'grad_norm': norm,
        'weight': weight,
        'lr': rate(state.step),
        'first_bad': _first_bad(squares),
    }
    failed = dataclasses.replace(
        state, step=jnp.minimum(state.step, -1 - state.step)
    )
    keep = lambda a, b: jnp.where(finite, a, b)
    return jax.tree.map(keep, new, failed), scalars

  return step


def _place(tree: Any, where: Any) -> Any:
  if where is None:
    return tree
  return jax.tree.map(jax.lax.with_sharding_constraint, tree, where)


def _accumulate(value_and_grad, params, batch: loss_lib.Batch):
  """Returns the sums over the microbatches of the value and the gradient."""
  if len(batch['tokens']) == 1:
    return value_and_grad(params, {k: v[0] for k, v in batch.items()})

  def body(total, micro):
    return jax.tree.map(jnp.add, total, value_and_grad(params, micro)), None

  zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, params)
  return jax.lax.scan(body, zeros, batch)[0]


def _first_bad(squares: Float[Array, ' parts']) -> Array:
  bad = ~jnp.isfinite(squares)
  return jnp.where(jnp.any(bad), jnp.argmax(bad), -1)


def jit(
    pure: Callable[..., tuple[TrainState, Scalars]], state: TrainState
) -> Callable[..., tuple[TrainState, Scalars]]:
  """Returns the step jitted: (frozen, state, batch) -> (state, scalars).

  Args:
    pure: From `make`.
    state: Donated at each call; gives the shardings of the one that comes out.
  """
  shardings = jax.tree.map(lambda x: x.sharding, state)
  return jax.jit(pure, donate_argnums=1, out_shardings=(shardings, None))


def compile(
    pure: Callable[..., tuple[TrainState, Scalars]],
    config: StepConfig,
    frozen: decoder.Params,
    state: TrainState,
    mesh: jax.sharding.Mesh | None,
) -> Callable[
    [TrainState, Mapping[str, np.ndarray]], tuple[TrainState, Scalars]
]:
  """Returns (state, batch of numpy arrays) -> (state, scalars), jitted.

  The state that goes in is donated: do not use it again.

  Args:
    pure: From `make`.
    config: How a batch is split.
    frozen: See `make`.
    state: Gives the shardings of the state that comes out; not consumed.
    mesh: See `place`; None for one device.
  """
  jitted = jit(pure, state)

  def run(state, batch):
    return jitted(frozen, state, place(batch, config, mesh))

  return run


def place(
    batch: Mapping[str, np.ndarray],
    config: StepConfig,
    mesh: jax.sharding.Mesh | None,
) -> dict[str, Array]:
  """Returns the arrays [microbatch, B, T] of a batch on the devices.

  Args:
    batch: Arrays [B, T], whole on every host.
    config: How it is split into microbatches.
    mesh: Rows lie over its data and fsdp, tokens over sequence.

  Raises:
    ConfigError: If rows or tokens do not split so.
  """
  num_ways = mesh_lib.num_row_shards(mesh) if mesh else 1
  num_parts = mesh_lib.num_parts(mesh)
  num_rows, width = batch['tokens'].shape
  parts = config.num_microbatches * num_ways
  if num_rows % parts:
    raise errors.ConfigError(
        f'A batch of {num_rows} rows does not split into'
        f' {config.num_microbatches} microbatches over {num_ways} devices;'
        f' make config.sft.batch_size a multiple of {parts}.'
    )
  if width % num_parts:
    raise errors.ConfigError(
        f'Rows of {width} tokens do not split over config.mesh.sequence ='
        f' {num_parts}; make config.sft.max_tokens a multiple of it.'
    )

  def put(x: np.ndarray) -> Array:
    x = x.reshape(config.num_microbatches, -1, width)
    if mesh is None:
      return jnp.asarray(x)
    where = _by_token(mesh)
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

  return {k: put(v) for k, v in batch.items()}
