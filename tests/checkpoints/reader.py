"""One of two hosts that go on from a checkpoint; host 1 reads a broken copy.

`python -m tests.checkpoints.reader FOLDER`: FOLDER/good and FOLDER/bad.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp

from palign_jax.checkpoints import store
from palign_jax.parallel import hosts, mesh as mesh_lib, peers


def main(folder: str) -> None:
  hosts.join()
  mesh = mesh_lib.make({'fsdp': 2})
  where = jax.NamedSharding(mesh, jax.P('fsdp'))
  w = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=where)
  good, arrays = pathlib.Path(folder, 'good'), store._arrays
  if jax.process_index():
    bad = pathlib.Path(folder, 'bad')
    store._arrays = lambda path, like: arrays(bad / path.name, like)
  with (
      peers.joined() as team,
      store.CheckpointStore(good, keep=2, peers=team) as checkpoints,
  ):
    found = checkpoints.restore({'params': {'w': w}})
    for shard in found.state['params']['w'].addressable_shards:
      assert (shard.data == found.step).all()
    checkpoints.save(2, found.state, {'next': 20})
    print(f'went on from {found.step}', flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
