"""The tensors of a folder's safetensors files, read slice by slice."""

from collections.abc import Mapping
import dataclasses
import json
import re
from typing import Any

from etils import epath
import numpy as np
import safetensors

from palign_jax.checkpoints import hf_names
from palign_jax.core import errors

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_DTYPES = ('F32', 'BF16', 'F16')


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor on disk."""

  name: str
  file: epath.Path
  shape: tuple[int, ...]
  dtype: str  # As the header writes it, e.g. 'BF16'.

  def read(self, index: hf_names.Slices) -> np.ndarray:
    """Returns a part of it; no other part is read."""
    with safetensors.safe_open(self.file, 'np') as f:
      return f.get_slice(self.name)[index]


def read_json(path: epath.Path) -> dict[str, Any]:
  """Returns the object in a JSON file.

  Raises:
    CheckpointError: If the file is missing or holds no JSON object.
  """
  if not path.is_file():
    raise errors.CheckpointError(f'{path}: no such file.')
  try:
    value = json.loads(path.read_text())
  except ValueError as e:
    raise errors.CheckpointError(f'{path}: no valid JSON ({e}).') from e
  except OSError as e:
    raise errors.CheckpointError(
        f'{path}: cannot be read ({e.strerror or e}).'
    ) from e
  if not isinstance(value, dict):
    raise errors.CheckpointError(f'{path}: holds no JSON object.')
  return value


def tensors(folder: epath.Path) -> dict[str, Tensor]:
  """Returns every tensor of a model's folder by name; reads headers only.

  Raises:
    CheckpointError: If there are no weights, or a file is missing or broken.
  """
  if (folder / _INDEX).is_file():
    places = read_json(folder / _INDEX).get('weight_map')
    if not isinstance(places, dict) or not places:
      raise errors.CheckpointError(f'{folder / _INDEX}: it has no weight_map.')
    files = sorted(set(places.values()))
  elif (folder / _SINGLE).is_file():
    files = [_SINGLE]
  else:
    raise errors.CheckpointError(
        f'{folder}: no weights; it needs {_SINGLE} or {_INDEX} (weights in'
        ' another format must be converted first).'
    )
  found: dict[str, Tensor] = {}
  for name in files:
    for tensor in in_file(folder / name):
      if tensor.name in found:
        raise errors.CheckpointError(
            f'{folder}: {tensor.name} is both in'
            f' {found[tensor.name].file.name} and in {name}.'
        )
      found[tensor.name] = tensor
  return found


def in_file(file: epath.Path) -> list[Tensor]:
  """Returns the tensors of one file; reads its header only.

  Raises:
    CheckpointError: If the file is missing or broken.
  """
  if not file.is_file():
    raise errors.CheckpointError(f'{file}: no such file.')
  try:
    with safetensors.safe_open(file, 'np') as f:
      slices = {name: f.get_slice(name) for name in f.keys()}
      return [
          Tensor(name, file, tuple(s.get_shape()), s.get_dtype())
          for name, s in slices.items()
      ]
  except safetensors.SafetensorError as e:
    raise errors.CheckpointError(f'{file}: no valid safetensors ({e}).') from e


def check(
    found: Mapping[str, Tensor],
    table: tuple[hf_names.Row, ...],
    sizes: hf_names.Sizes,
    *,
    tolerated: tuple[str, ...],
    at: epath.Path,
) -> None:
  """Raises unless the tensors are exactly those that the table asks for.

  Args:
    found: By name.
    table: What there should be.
    sizes: Of the axes.
    tolerated: Names that may be there and are not read.
    at: The folder, for messages.

  Raises:
    CheckpointError: If any is missing, not known, of another shape, or of a
      dtype that is not read; names them.
  """
  wanted = hf_names.names(table, sizes['L'])
  if missing := sorted(wanted.keys() - found.keys()):
    raise errors.CheckpointError(f'{at}: lacks {_list(missing)}.')
  template = lambda name: re.sub(r'\.\d+\.', '.{}.', name)
  extra = [
      name
      for name in sorted(found.keys() - wanted.keys() - set(tolerated))
      if template(name) not in hf_names.IGNORED
  ]
  if extra:
    raise errors.CheckpointError(
        f'{at}: the model that its config.json describes has no'
        f' {_list(extra)}.'
    )
  for name, row in wanted.items():
    tensor, shape = found[name], row.hf_shape(sizes)
    if tensor.shape != shape:
      raise errors.CheckpointError(
          f'{at}: {name} has shape {tensor.shape}; its config.json asks for'
          f' {shape}.'
      )
    if tensor.dtype not in _DTYPES:
      raise errors.CheckpointError(
          f'{at}: {name} is {tensor.dtype}; only {", ".join(_DTYPES)} are read.'
      )


def _list(names: list[str]) -> str:
  more = f' and {len(names) - 4} more' if len(names) > 4 else ''
  return ', '.join(names[:4]) + more
