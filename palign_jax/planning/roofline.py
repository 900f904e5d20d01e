"""The time that no program of these FLOPs and bytes can beat."""

from collections.abc import Mapping
import dataclasses

from jax.sharding import Mesh
import numpy as np

from palign_jax.planning import hlo, topology as topology_lib

# Two devices on a TPU7x chip are joined by as much as six links.
_DIE_TO_DIE = 6


@dataclasses.dataclass(frozen=True)
class Roofline:
  """What bounds a step, in seconds each; they overlap at best."""

  compute: float
  hbm: float
  ici: Mapping[str, float]  # By mesh axis.
  dcn: float | None = None  # None for one slice.

  @property
  def limits(self) -> dict[str, float]:
    """Every bound by its name."""
    ici = {f'ici:{axis}': seconds for axis, seconds in self.ici.items()}
    dcn = {} if self.dcn is None else {'dcn': self.dcn}
    return {'compute': self.compute, 'hbm': self.hbm, **ici, **dcn}

  @property
  def seconds(self) -> float:
    """The time of a step, at least."""
    return max(self.limits.values())

  @property
  def limit(self) -> str:
    """What takes that time: 'compute', 'hbm', 'ici:AXIS' or 'dcn'."""
    return max(self.limits, key=self.limits.__getitem__)


def bound(
    topology: topology_lib.Topology,
    mesh: Mesh,
    *,
    flops: float,
    hbm_bytes: float,
    collective_bytes: Mapping[str, int],
) -> Roofline:
  """Returns the bounds of a step.

  Args:
    topology: The slice.
    mesh: Its devices.
    flops: Executed by a device.
    hbm_bytes: That a device reads and writes.
    collective_bytes: That a device sends, by mesh axis (or 'a+b'), and to
      other slices as `hlo.DCN`.
  """
  chip, within = topology.chip, dict(collective_bytes)
  across = within.pop(hlo.DCN, None)
  return Roofline(
      compute=flops * chip.devices / chip.peak,
      hbm=hbm_bytes * chip.devices / chip.hbm_bandwidth,
      ici={
          axes: sent / bandwidth(topology, mesh, axes)
          for axes, sent in within.items()
      },
      dcn=None if across is None else across * chip.devices / chip.dcn,
  )


def bandwidth(topology: topology_lib.Topology, mesh: Mesh, axes: str) -> float:
  """Returns the bytes per second that a device can send along mesh axes.

  Each dimension of the torus that the axes run along gives two links where it
  closes to a ring, else one (the device at the end has no more).

  Args:
    topology: The slice.
    mesh: Its devices.
    axes: One, or several as 'a+b'.
  """
  chip, wanted = topology.chip, axes.split('+')
  places = tuple(
      slice(None) if axis in wanted else 0 for axis in mesh.axis_names
  )
  devices = np.atleast_1d(mesh.devices[places]).reshape(-1)
  # Along data also those of other slices, at the same coordinates.
  coords = np.array([device.coords for device in devices])
  extents = [len(set(column)) for column in coords.T]
  links = 0
  for size, extent in zip(topology.sizes, extents, strict=False):
    closed = extent == size and size % chip.wraps == 0
    links += (2 if closed else 1) if extent > 1 else 0
  if not links:  # Within a chip.
    return _DIE_TO_DIE * chip.link
  return links * chip.link / chip.devices
