"""What training holds before its first step and after its last, by formula.

Weights are there twice then (stages/sft.py).  Nothing is compiled: programs of
these moments work on a layer or a tensor at a time.
"""

import math

import jax
import jax.numpy as jnp

from palign_jax.models import decoder
from palign_jax.parallel import memory
from palign_jax.planning import cases


def of(
    case: cases.Case, frozen: decoder.Params, trained: decoder.Params
) -> dict[str, int]:
  """Returns the bytes of a device at these moments, by what to tell of them.

  Args:
    case: The run.
    frozen: Shapes and places of what is frozen in training; may be empty.
    trained: Of what is trained.
  """
  s, student, mesh = case.settings.sft, case.student, case.train_mesh
  dtype = jnp.dtype(s.export_dtype)
  held = memory.per_device(trained)
  if s.method == 'full':
    if dtype != jnp.float32:
      held += memory.per_device(cases.weights(student, dtype, mesh))
    return {'trained and exported weights at once': held + _fetched(case)}
  base = cases.weights(student, jnp.dtype(case.settings.student.dtype), mesh)
  merged = cases.weights(student, dtype, mesh)
  held += memory.per_device(base) + memory.per_device(merged)
  peaks = {}
  if s.quantize == 'int8':
    held += memory.per_device(frozen)
    name = 'the base as loaded and in 8 bits at once'
    peaks[name] = _quantizing(base, frozen)
  return peaks | {'base and merged weights at once': held + _fetched(case)}


def _quantizing(base: decoder.Params, small: decoder.Params) -> int:
  """Returns the most that `quantization.quantize` holds, kernel by kernel."""
  now = most = memory.per_device(base)
  for name in decoder.PROJECTIONS:
    old, new = base['layers'][name], small['layers'][name]
    now += memory.per_device([new['kernel'], new['kernel_scale']])
    most = max(most, now)
    now -= memory.per_device(old['kernel'])
  return most


def _fetched(case: cases.Case) -> int:
  """Returns the bytes of the largest tensor that lies whole on a device.

  It does where process 0 writes what other hosts hold (checkpoints/hf_export).
  """
  if case.hosts == 1:
    return 0
  model, dtype = case.student.model, jnp.dtype(case.settings.sft.export_dtype)
  whole = decoder.abstract(model, dtype)
  shapes = [x.shape for x in jax.tree.leaves({**whole, 'layers': ()})]
  shapes += [x.shape[1:] for x in jax.tree.leaves(whole['layers'])]
  return max(map(math.prod, shapes)) * dtype.itemsize
