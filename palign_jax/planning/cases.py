"""A run that is asked about: config, models and devices, all without arrays."""

import dataclasses
import functools
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from palign_jax.checkpoints import hf_config, hf_files
from palign_jax.core import errors
from palign_jax.models import decoder, kernels, presets
from palign_jax.parallel import local, mesh as mesh_lib, rules
from palign_jax.planning import topology as topology_lib
from palign_jax.stages import settings as settings_lib


@dataclasses.dataclass(frozen=True)
class Case:
  """One config on one slice.

  Attributes:
    settings: The config.
    topology: The slice.
    train_mesh: Its devices, as `config.mesh` orders them.
    student: None if the config names none.
    teacher: None unless it is to write the traces.
  """

  settings: settings_lib.Settings
  topology: topology_lib.Topology
  train_mesh: Mesh
  student: presets.Preset | None
  teacher: presets.Preset | None

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The devices of one host, as stages have them that divide their rows.

    They are those of a slice of one host, which stands for any of them.

    Raises:
      ConfigError: As main would, if they do not come out even.
    """
    whole = mesh_lib.whole_rows(self.train_mesh)
    own = local.mesh(whole, self.topology.devices[0].process_index)
    if self.hosts == 1:
      return own
    devices = topology_lib.of_one_host(self.topology).devices
    return mesh_lib.make(dict(own.shape), devices)

  @property
  def hosts(self) -> int:
    """How many hosts judge and sample, each by itself."""
    return local.num_hosts(self.train_mesh)

  @property
  def shards(self) -> int:
    """Groups of a host's devices that rows are split over, in these stages."""
    return mesh_lib.num_row_shards(self.mesh)

  @property
  def attention(self) -> kernels.Backend:
    """Who computes attention, in judging and sampling."""
    return kernels.Backend(self.settings.compute.attention, self.mesh)


def make(
    settings: settings_lib.Settings, topology: topology_lib.Topology
) -> Case:
  """Returns a case.

  Raises:
    ConfigError: If no model is named, one is unknown, the mesh does not fit
      the slice or a model, or the attention that is named does not.
  """
  s = settings
  mesh = mesh_lib.make(s.mesh, topology.devices)
  student = s.student.path and model(s.student.path)
  writes = s.teacher.path and not s.teach.traces
  teacher = model(s.teacher.path) if writes else None
  if not student and not teacher:
    raise errors.ConfigError(
        'config.student.path is not set; name a model folder or one of'
        f' {", ".join(presets.PRESETS)}.'
    )
  case = Case(s, topology, mesh, student or None, teacher)
  attention = kernels.Backend(s.compute.attention, mesh)
  for preset in filter(None, (case.student, case.teacher)):
    weights(preset, jnp.bfloat16, case.train_mesh)  # Raises if it cannot be.
    attention.check(s.student.dtype, preset.model.head_dim)
  return case


def check_host(case: Case) -> None:
  """Raises where main would not judge or sample, but might train.

  Raises:
    ConfigError: If a host's devices do not split so, or a model over them.
  """
  for preset in filter(None, (case.student, case.teacher)):
    weights(preset, jnp.bfloat16, case.mesh)


def model(path: str) -> presets.Preset:
  """Returns what a folder's config.json or a name on the Hub says.

  Raises:
    ConfigError: If there is neither.
  """
  file = epath.Path(path) / 'config.json'
  if file.is_file():
    raw = hf_files.read_json(file)
    return presets.Preset(hf_config.read(raw), hf_config.max_positions(raw))
  found = presets.find(path)
  if found is None:
    raise errors.ConfigError(
        f'{path}: no folder with a config.json here, and no model known by'
        f' that name; known are {", ".join(presets.PRESETS)}.'
    )
  return found


def placed(shapes: Any, shardings: Any) -> Any:
  """Returns shapes with the places of their arrays."""
  return jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      shapes,
      shardings,
  )


def weights(
    preset: presets.Preset, dtype: DTypeLike, mesh: Mesh
) -> decoder.Params:
  """Returns the shapes and places of a model's weights, stacked."""
  shapes = decoder.abstract(preset.model, dtype)
  axes = decoder.logical_axes(preset.model)
  return placed(shapes, rules.tree_shardings(shapes, axes, mesh))


def unstacked(params: decoder.Params) -> decoder.Params:
  """Returns them by layer, as `decoder.unstack` does with arrays."""

  def part(x):
    where = x.sharding
    where = NamedSharding(where.mesh, PartitionSpec(*where.spec[1:]))
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where)

  layer = jax.tree.map(part, params['layers'])
  num = jax.tree.leaves(params['layers'])[0].shape[0]
  return {**params, 'layers': (layer,) * num}
