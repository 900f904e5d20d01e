"""Writes safetensors files one tensor at a time.

The library wants all tensors of a file in memory; here one is enough.
Source: https://github.com/huggingface/safetensors, section "Format".
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import json
import math
import struct
from typing import BinaryIO

from etils import epath
import numpy as np

_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16', 'float16': 'F16'}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A tensor to be written, and how to get it."""

  name: str
  shape: tuple[int, ...]
  get: Callable[[], np.ndarray]


def write(
    folder: epath.Path,
    tensors: Iterable[Tensor],
    dtype: np.dtype,
    *,
    stem: str,
    max_bytes: int,
) -> None:
  """Writes one file, or several of at most `max_bytes` and their index.

  Args:
    folder: An existing folder.
    tensors: In the order in which they are got and written.
    dtype: float32, bfloat16 or float16; tensors are cast to it.
    stem: Of the files' names, e.g. 'model'.
    max_bytes: Tensor bytes of a file; a larger tensor gets a file to itself.
  """
  files: list[list[Tensor]] = [[]]
  room = max_bytes
  for tensor in tensors:
    size = _num_bytes(tensor, dtype)
    if files[-1] and size > room:
      files.append([])
      room = max_bytes
    files[-1].append(tensor)
    room -= size
  if len(files) == 1:
    _write_file(folder / f'{stem}.safetensors', files[0], dtype)
    return
  places = {}
  for i, group in enumerate(files, 1):
    name = f'{stem}-{i:05d}-of-{len(files):05d}.safetensors'
    _write_file(folder / name, group, dtype)
    places |= {tensor.name: name for tensor in group}
  total = sum(_num_bytes(tensor, dtype) for group in files for tensor in group)
  index = {'metadata': {'total_size': total}, 'weight_map': places}
  text = json.dumps(index, indent=2) + '\n'
  (folder / f'{stem}.safetensors.index.json').write_text(text)


def _num_bytes(tensor: Tensor, dtype: np.dtype) -> int:
  return math.prod(tensor.shape) * dtype.itemsize


def _write_file(
    path: epath.Path, tensors: list[Tensor], dtype: np.dtype
) -> None:
  # transformers asks for this entry.
  header: dict[str, Mapping] = {'__metadata__': {'format': 'pt'}}
  offset = 0
  for tensor in tensors:
    end = offset + _num_bytes(tensor, dtype)
    header[tensor.name] = {
        'dtype': _DTYPES[dtype.name],
        'shape': tensor.shape,
        'data_offsets': (offset, end),
    }
    offset = end
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)  # Tensors begin at a multiple of 8.
  with path.open('wb') as f:
    f.write(struct.pack('<Q', len(text)))
    f.write(text)
    for tensor in tensors:
      _write_tensor(f, tensor, dtype)


def _write_tensor(f: BinaryIO, tensor: Tensor, dtype: np.dtype) -> None:
  x = tensor.get()
  assert x.shape == tensor.shape, (tensor.name, x.shape)
  f.write(np.ascontiguousarray(x.astype(dtype)).tobytes())
