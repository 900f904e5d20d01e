"""Losses of the first steps on any mesh; as a program, on one of two hosts.

It prints the losses of both methods, as JSON.
"""

from collections.abc import Mapping
import dataclasses
import json
import sys
from typing import Any

import jax
import numpy as np

from palign_jax.models import decoder, lora
from palign_jax.parallel import hosts, mesh as mesh_lib, rules
from palign_jax.training import data
from tests.training import tiny

NUM_STEPS = 20
OPTIM = dataclasses.replace(tiny.OPTIM, eps=1e-8)  # As the configs have it.
METHODS = ('lora', 'full')
_RANK = 4
SHAPE = data.DataConfig(max_tokens=32, batch_size=8, max_waiting=4)


def batches():
  """Packed rows of unequal weight, other ones in every step."""
  stream = iter(data.PackedBatches(source(), SHAPE))
  return [next(stream) for _ in range(NUM_STEPS)]


def source() -> data.Source:
  """Returns examples of all sizes, enough for all steps."""
  sizes = np.random.default_rng(5).integers(5, 32, 32)
  return data.shuffled([tiny.example(i, n) for i, n in enumerate(sizes)], 20, 0)


def weights(method: str, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
  """Returns what is frozen and what is trained."""
  base = _put(tiny.params(), decoder.logical_axes(tiny.MODEL), mesh)
  if method == 'full':
    return {}, base
  axes = lora.logical_axes(tiny.MODEL, _RANK)
  return base, _put(tiny.adapters(_RANK), axes, mesh)


def losses(method: str, mesh: jax.sharding.Mesh) -> list[float]:
  """Returns the loss of each step, two microbatches in each."""
  frozen, trained = weights(method, mesh)
  state = tiny.start(trained, OPTIM, num_steps=NUM_STEPS)
  run = tiny.stepper(
      state,
      frozen,
      optim_config=OPTIM,
      num_steps=NUM_STEPS,
      num_microbatches=2,
      mesh=mesh,
      loss_config=dataclasses.replace(tiny.LOSS, chunk_size=4),
  )
  found = []
  for batch in batches():
    state, scalars = run(state, batch)
    found.append(float(scalars['loss']))
  return found


def _put(tree: Any, axes: Any, mesh: jax.sharding.Mesh) -> Any:
  def one(x, where):
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda at: x[at])

  return jax.tree.map(one, tree, rules.tree_shardings(tree, axes, mesh))


def main(sizes: Mapping[str, int]) -> None:
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 4)
  hosts.join()
  mesh = mesh_lib.make(sizes)
  print(json.dumps({method: losses(method, mesh) for method in METHODS}))


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
