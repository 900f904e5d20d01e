"""What all processes of a training loop agree to do after a step.

Each says a number at every step, and the largest holds for all.  It is asked
of the devices, in the order of the steps, so that all processes hear the same
answer at the same step; nobody waits for it longer than for the step before.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
import numpy as np


def line(devices: Sequence[Any]) -> Mesh:
  """Returns all devices in a row, those of several slices as well.

  `jax.make_mesh` would refuse the latter.
  """
  return Mesh(np.array(devices), ('all',), axis_types=(AxisType.Auto,))


class Ballot:
  """The largest of the processes' numbers; alone, the number itself."""

  def __init__(self):
    if jax.process_count() == 1:
      self._largest = None
      return
    mesh = line(jax.devices())
    self._spread = jax.NamedSharding(mesh, jax.P('all'))
    whole = jax.NamedSharding(mesh, jax.P())
    self._largest = jax.jit(jnp.max, out_shardings=whole)

  def cast(self, number: int) -> int | jax.Array:
    """Says this process's number; every process must."""
    if self._largest is None:
      return number
    mine = np.full((1,), number, np.int32)
    votes = jax.make_array_from_callback(
        (jax.device_count(),), self._spread, lambda at: mine
    )
    return self._largest(votes)
