"""Writes folders that Hugging Face's libraries load, and so do we.

Tensors go from the devices to the file one at a time.  On disk a folder
appears whole under its name; elsewhere its config comes last, and an object
beside it, `<folder>.unfinished`, says from the first put to the last that what
is there is ours and may be replaced.
"""

from collections.abc import Callable, Iterator, Mapping
import json
import os
import sys
from typing import Any

from etils import epath
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.typing import DTypeLike
import numpy as np

from palign_jax.checkpoints import (
    folders,
    hf_config,
    hf_import,
    hf_names,
    hf_writer,
)
from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder

MAX_FILE_BYTES = 4 << 30
_CONFIGS = ('config.json', 'adapter_config.json')


def save(
    folder: epath.PathLike,
    model: hf_import.Model,
    *,
    tokenizer_folder: epath.PathLike,
    dtype: DTypeLike,
    max_file_bytes: int = MAX_FILE_BYTES,
) -> None:
  """Writes a model with its tokenizer; every process must call it.

  Args:
    folder: Is replaced if it is there.
    model: With the weights to write; adapters must be merged before.
    tokenizer_folder: Its tokenizer files are copied byte for byte.
    dtype: Of the tensors written.
    max_file_bytes: Above it weights are split over several files.

  Raises:
    CheckpointError: If there is no tokenizer, no architecture fits the
      config, or the folder cannot be written.
  """
  dtype = jnp.dtype(dtype)
  tokenizer = [
      epath.Path(tokenizer_folder) / x for x in folders.TOKENIZER_FILES
  ]
  tokenizer = [path for path in tokenizer if path.is_file()]
  if not tokenizer:
    raise errors.CheckpointError(
        f'{tokenizer_folder}: no tokenizer files to export with the model.'
    )
  raw = hf_config.write(model.config, model.raw_config, dtype.name)
  generation = model.raw_generation or _generation(model)
  table, sizes = hf_names.rows(model.config), hf_names.sizes(model.config)
  tensors = list(_tensors(model.params, table, sizes))

  def fill(place: epath.Path) -> None:
    for path in tokenizer:
      path.copy(place / path.name, overwrite=True)
    _write_json(place / 'generation_config.json', generation)
    hf_writer.write(
        place,
        tensors,
        dtype,
        stem='model',
        max_bytes=max_file_bytes,
    )
    _write_json(place / 'config.json', raw)

  _publish(epath.Path(folder), fill, tensors)


def save_adapter(
    folder: epath.PathLike,
    adapters: decoder.Params,
    config: config_lib.ModelConfig,
    *,
    alpha: int | float,
    base_name: str,
) -> None:
  """Writes adapters as PEFT does, float32; every process must call it.

  Args:
    folder: Is replaced if it is there.
    adapters: As from `lora.init`.
    config: Of the base model.
    alpha: The adapters are scaled by alpha / rank.
    base_name: Where the base model is, for those who load the adapter.

  Raises:
    CheckpointError: If the folder cannot be written.
  """
  targets = list(adapters['layers'])
  rank = adapters['layers'][targets[0]]['lora_a'].shape[-1]
  raw = {
      'peft_type': 'LORA',
      'task_type': 'CAUSAL_LM',
      'base_model_name_or_path': base_name,
      'r': rank,
      'lora_alpha': alpha,
      'lora_dropout': 0.0,
      'bias': 'none',
      'target_modules': [f'{name}_proj' for name in targets],
      'fan_in_fan_out': False,
      'inference_mode': True,
      'modules_to_save': None,
  }
  table, sizes = hf_names.adapter_rows(targets), hf_names.sizes(config, rank)
  tensors = list(_tensors(adapters, table, sizes))

  def fill(place: epath.Path) -> None:
    hf_writer.write(
        place,
        tensors,
        jnp.dtype(jnp.float32),
        stem='adapter_model',
        max_bytes=sys.maxsize,  # PEFT knows no index.
    )
    _write_json(place / 'adapter_config.json', raw)

  _publish(epath.Path(folder), fill, tensors)


def _tensors(
    params: decoder.Params,
    table: tuple[hf_names.Row, ...],
    sizes: hf_names.Sizes,
) -> Iterator[hf_writer.Tensor]:
  """Yields the tensors of the table, those of a layer beside each other."""
  flat = traverse_util.flatten_dict(params)

  def tensor(row: hf_names.Row, i: int | None) -> hf_writer.Tensor:
    get = lambda: row.to_hf(_fetch(flat[row.path], i), sizes)
    return hf_writer.Tensor(row.hf.format(i), row.hf_shape(sizes), get)

  stacked = [row for row in table if row.stacked]
  for i in range(sizes['L']):
    yield from (tensor(row, i) for row in stacked)
  yield from (tensor(row, None) for row in table if not row.stacked)


def _fetch(x: jax.Array, layer: int | None) -> np.ndarray:
  """Returns an array, or one layer of it, from wherever its parts lie."""
  x = x if layer is None else x[layer]
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return multihost_utils.process_allgather(x, tiled=True)
  return np.asarray(x)


def _generation(model: hf_import.Model) -> dict[str, Any]:
  ids = ('bos_token_id', 'pad_token_id')
  known = {name: model.raw_config.get(name) for name in ids}
  known = {name: value for name, value in known.items() if value is not None}
  return known | {'eos_token_id': list(model.stop_ids)}


def _write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def _publish(
    folder: epath.Path,
    fill: Callable[[epath.Path], None],
    tensors: list[hf_writer.Tensor],
) -> None:
  """Fills a folder in process 0; the others take part in what it fetches."""
  _check_ours(folder)  # In all processes, or the others would wait.
  if jax.process_index() == 0:
    put = _put if '://' in str(folder) else _replace
    try:
      put(folder, fill)
    except OSError as e:
      raise errors.CheckpointError(
          f'{folder}: cannot be written ({e.strerror or e}); mend this (is'
          ' there room?) and run the same command again.'
      ) from e
  else:
    for tensor in tensors:
      tensor.get()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'export {folder}')


def _check_ours(folder: epath.Path) -> None:
  """Raises if a folder holds anything but an export, finished or not.

  However far process 0 is, all processes find the same: before a config goes
  the mark is there.
  """
  signs = (*(folder / name for name in _CONFIGS), _unfinished(folder))
  if not folder.exists() or any(path.is_file() for path in signs):
    return
  if any(folder.iterdir()):
    raise errors.CheckpointError(
        f'{folder}: is there and is no exported model; remove it, or export'
        ' elsewhere.'
    )


def _unfinished(folder: epath.Path) -> epath.Path:
  return folder.with_name(f'{folder.name}.unfinished')


def _put(folder: epath.Path, fill: Callable[[epath.Path], None]) -> None:
  """Replaces a folder where nothing can be renamed."""
  mark = _unfinished(folder)
  mark.write_text('The export beside this is not whole.\n')
  if folder.exists():
    folder.rmtree()
  fill(folder)
  mark.unlink()


def _replace(folder: epath.Path, fill: Callable[[epath.Path], None]) -> None:
  """Replaces a folder on disk; if that fails it is as it was."""
  beside = folder.with_name(f'.{folder.name}.{os.getpid()}.tmp')
  old = folder.with_name(f'.{folder.name}.{os.getpid()}.old')
  beside.mkdir(parents=True)
  try:
    fill(beside)
    if folder.exists():
      os.replace(folder, old)
    os.replace(beside, folder)
  finally:
    if beside.exists():
      beside.rmtree()
  if old.exists():
    old.rmtree()
