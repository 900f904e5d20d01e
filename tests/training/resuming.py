"""A run that goes on from its folder, on any mesh, alone or as one of many.

What it trains is two matrices: no more is needed to see that state and order
of batches come back, and they compile in no time.

As a program, `python -m tests.training.resuming FOLDER NUM_STEPS STOP_AT`, it
is one of the processes of loop_test.
"""

from collections.abc import Mapping
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import stopping
from palign_jax.parallel import hosts, mesh as mesh_lib, peers
from palign_jax.training import data, loop, metrics, profiling, step
from tests.training import tiny

EXAMPLES = [tiny.example(i, 5 + i % 9) for i in range(30)]
DATA = data.DataConfig(max_tokens=32, batch_size=8, max_waiting=3)
VOCAB, WIDTH = tiny.MODEL.vocab_size, 16
OPTIMIZER = optax.adam(1e-2, eps=1e-3)


class Batches(data.PackedBatches):
  """Tells the process to end when it takes batch number `stop_at`."""

  stop_at = 0

  def __iter__(self):
    for number, batch in enumerate(super().__iter__(), 1):
      if number == self.stop_at:
        stopping.ask()
      yield batch


def start(mesh: jax.sharding.Mesh) -> step.TrainState:
  """Returns the state before the first step, split over `fsdp` and `tensor`."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {'table': draw(VOCAB, WIDTH), 'head': draw(WIDTH, VOCAB)}
  state = step.TrainState(np.int32(0), params, OPTIMIZER.init(params))
  split = jax.NamedSharding(mesh, jax.P('fsdp', 'tensor'))
  whole = mesh_lib.replicated(mesh)

  def put(x):
    x = np.asarray(x)
    return jax.make_array_from_callback(
        x.shape, split if x.ndim else whole, lambda at: x[at]
    )

  return jax.tree.map(put, state)


def stepper(state: step.TrainState, mesh: jax.sharding.Mesh):
  """Returns the function of a step."""

  def loss(params, batch):
    logits = params['table'][batch['tokens']] @ params['head']
    ce = optax.softmax_cross_entropy_with_integer_labels(
        logits[:, :-1], batch['tokens'][:, 1:]
    )
    return jnp.sum(ce * batch['weights'][:, 1:]) / 100

  def one(state, batch):
    value, grads = jax.value_and_grad(loss)(state.params, batch)
    with jax.numpy_dtype_promotion('standard'):
      updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    scalars = {'loss': value, 'grad_norm': optax.tree.norm(grads)}
    scalars |= {'lr': jnp.float32(1e-2), 'first_bad': jnp.int32(-1)}
    return step.TrainState(state.step + 1, params, opt_state), scalars

  where = jax.tree.map(lambda x: x.sharding, state)
  whole = mesh_lib.replicated(mesh)
  jitted = jax.jit(one, out_shardings=(where, whole))
  rows = mesh_lib.rows(mesh)

  def run(state, batch):
    put = lambda x: jax.make_array_from_callback(
        x.shape, rows, lambda at: x[at]
    )
    return jitted(state, {k: put(v) for k, v in batch.items()})

  return run


def run(
    directory: pathlib.Path,
    num_steps: int,
    mesh: jax.sharding.Mesh,
    *,
    stop_at: int = 0,
    team: peers.Hosts | None = None,
    profiler: profiling.Profiler | None = None,
) -> Mapping:
  """Trains to the end and returns the parameters, on this host."""
  state = start(mesh)
  batches = Batches(data.shuffled(EXAMPLES, 20, seed=1), DATA)
  batches.stop_at = stop_at
  config = loop.LoopConfig(
      num_steps, log_every=1, save_every=99, save_every_s=9e9
  )
  with (
      store_lib.CheckpointStore(
          directory / 'checkpoints', keep=2, peers=team
      ) as store,
      metrics.MetricsWriter(directory) as writer,
  ):
    state = loop.train(
        *(config, state, lambda: state, stepper(state, mesh)),
        *(batches, store, writer),
        profiler=profiler,
    )
  gather = jax.jit(lambda x: x, out_shardings=mesh_lib.replicated(mesh))
  return jax.device_get(gather(state.params))


def main(directory: str, num_steps: str, stop_at: str) -> None:
  """Is one of the processes."""
  hosts.join()
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 1})
  with peers.joined() as team:
    # Only the last one is told.
    stop = int(stop_at) if team.index == team.count - 1 else 0
    run(pathlib.Path(directory), int(num_steps), mesh, stop_at=stop, team=team)


if __name__ == '__main__':
  main(*sys.argv[1:])
