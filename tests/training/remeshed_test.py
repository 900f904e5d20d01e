"""Fine-tuning that goes on upon fewer devices is one that never stopped.

A decoder with adapters and the real step; loop_test has more meshes and hosts,
with less to compute.
"""

import functools
import math

import jax
import numpy as np
import pytest

from palign_jax.checkpoints import store as store_lib
from palign_jax.core import jsonl
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import data, loop, metrics
from tests.training import tiny, trajectory

NUM_STEPS = 6


class Noted(data.PackedBatches):
  """Notes which examples each batch has, row by row."""

  def __init__(self, ids):
    super().__init__(trajectory.source(), trajectory.SHAPE)
    self._ids = ids

  def __iter__(self):
    for batch in super().__iter__():
      self._ids.append(batch.ids)
      yield batch


@functools.cache
def start(sizes):
  """Returns what makes the first state on such a mesh, and the step."""
  num = math.prod(size for _, size in sizes)
  mesh = mesh_lib.make(dict(sizes), tiny.devices(num))
  weights = functools.partial(trajectory.weights, 'lora', mesh)
  first = lambda: tiny.start(weights()[1], trajectory.OPTIM, NUM_STEPS)
  step_fn = tiny.stepper(
      first(),
      weights()[0],
      optim_config=trajectory.OPTIM,
      num_steps=NUM_STEPS,
      mesh=mesh,
  )
  return first, step_fn


def run(directory, until, sizes, ids):
  """Trains up to a step; returns the adapters."""
  first, step_fn = start(tuple(sizes.items()))
  length = loop.LoopConfig(until, log_every=1, save_every=99, save_every_s=9e9)
  with (
      store_lib.CheckpointStore(directory / 'checkpoints', keep=2) as store,
      metrics.MetricsWriter(directory) as writer,
  ):
    state = loop.train(
        *(length, first(), first, step_fn, Noted(ids), store, writer)
    )
  return jax.device_get(state.params)


@pytest.mark.slow
def test_from_four_devices_to_two(tmp_path):
  whole_ids, ids = [], []
  four, two = {'data': 2, 'fsdp': 2}, {'tensor': 2}
  want = run(tmp_path / 'whole', NUM_STEPS, four, whole_ids)
  run(tmp_path / 'parts', 3, four, ids)
  got = run(tmp_path / 'parts', NUM_STEPS, two, ids)
  assert ids == whole_ids and len(ids) == NUM_STEPS
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  losses = [
      [row['loss'] for row in jsonl.read(tmp_path / name / 'metrics.jsonl')]
      for name in ('whole', 'parts')
  ]
  assert losses[0][:3] == losses[1][:3]
  np.testing.assert_allclose(*losses, rtol=1e-5)
