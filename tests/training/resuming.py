"""A run that goes on from its folder, on any mesh, alone or as one of many.

As a program, `python -m tests.training.resuming FOLDER NUM_STEPS STOP_AT`, it
is one of the processes of loop_test.
"""

from collections.abc import Mapping
import pathlib
import sys

import jax
import numpy as np

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import stopping
from palign_jax.models import decoder
from palign_jax.parallel import hosts, mesh as mesh_lib, peers, rules
from palign_jax.training import data, loop, metrics
from tests.training import tiny

EXAMPLES = [tiny.example(i, 5 + i % 9) for i in range(30)]
DATA = data.DataConfig(max_tokens=32, batch_size=4, max_waiting=3)


class Batches(data.PackedBatches):
  """Tells the process to end when it takes batch number `stop_at`."""

  stop_at = 0

  def __iter__(self):
    for number, batch in enumerate(super().__iter__(), 1):
      if number == self.stop_at:
        stopping.ask()
      yield batch


def run(
    directory: pathlib.Path,
    num_steps: int,
    mesh: jax.sharding.Mesh,
    *,
    stop_at: int = 0,
    team: peers.Hosts | None = None,
) -> Mapping:
  """Trains to the end and returns the parameters, on this host."""
  tree = tiny.params()
  where = rules.tree_shardings(tree, decoder.logical_axes(tiny.MODEL), mesh)
  put = lambda x, to: jax.make_array_from_callback(
      x.shape, to, lambda at: np.asarray(x)[at]
  )
  state = tiny.start(jax.tree.map(put, tree, where))
  shards = mesh_lib.num_row_shards(mesh)
  step_fn = tiny.stepper(
      state, {}, mesh=mesh, num_microbatches=DATA.batch_size // shards
  )
  batches = Batches(data.shuffled(EXAMPLES, 9, seed=1), DATA)
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
    state = loop.train(config, state, step_fn, batches, store, writer)
  whole = mesh_lib.replicated(mesh)
  gather = jax.jit(lambda x: x, out_shardings=whole)
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
