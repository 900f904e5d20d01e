"""Reads a Hugging Face folder straight onto the devices.

Headers are checked before any tensor is read.  Of each tensor a process reads
only the bytes that its own devices hold, and those once.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from etils import epath
from flax import traverse_util
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
import numpy as np

from palign_jax.checkpoints import folders, hf_config, hf_files, hf_names
from palign_jax.core import errors
from palign_jax.models import config as config_lib, decoder, lora
from palign_jax.parallel import rules

_HEAD = 'lm_head.weight'
_TABLE = 'model.embed_tokens.weight'


@dataclasses.dataclass(frozen=True)
class Model:
  """Weights, and what the folder says beside them."""

  config: config_lib.ModelConfig
  params: decoder.Params  # Stacked.
  stop_ids: tuple[int, ...]  # Without the tokenizer's own.
  max_positions: int  # In tokens.
  raw_config: Mapping[str, Any]  # config.json as it was.
  raw_generation: Mapping[str, Any]  # generation_config.json, or empty.
  folder: epath.Path | None  # On this machine's disk; None if made here.


def describe(source: epath.PathLike, *, dtype: DTypeLike) -> Model:
  """Checks a model folder whole but reads no tensor.

  Args:
    source: A folder, on disk or on gs://, or a name on the Hub.
    dtype: Of the weights in memory.

  Returns:
    The model with `ShapeDtypeStruct`s in place of its weights.

  Raises:
    CheckpointError: If the folder is missing or incomplete, its config.json
      asks for what is not implemented, or its tensors do not fit it.
  """
  return _describe(source, dtype)[0]


def _describe(
    source: epath.PathLike, dtype: DTypeLike
) -> tuple[Model, Mapping[str, hf_files.Tensor]]:
  folder = folders.stage(source)
  raw = hf_files.read_json(folder / 'config.json')
  generation = {}
  if (folder / 'generation_config.json').is_file():
    generation = hf_files.read_json(folder / 'generation_config.json')
  config = hf_config.read(raw)
  found = hf_files.tensors(folder)
  table, sizes = hf_names.rows(config), hf_names.sizes(config)
  tolerated = (_HEAD,) if config.tied else ()
  hf_files.check(found, table, sizes, tolerated=tolerated, at=folder)
  model = Model(
      config=config,
      params=decoder.abstract(config, jnp.dtype(dtype)),
      stop_ids=_stop_ids(raw, generation),
      max_positions=hf_config.max_positions(raw),
      raw_config=raw,
      raw_generation=generation,
      folder=folder,
  )
  return model, found


def load(
    source: epath.PathLike, *, dtype: DTypeLike, mesh: Mesh | None = None
) -> Model:
  """Reads a model.

  Args:
    source: A folder, on disk or on gs://, or a name on the Hub.
    dtype: Of the weights in memory.
    mesh: The devices; None is the first device.

  Raises:
    CheckpointError: As `describe`.
    ConfigError: If the mesh does not split a weight evenly.
  """
  model, found = _describe(source, dtype)
  config = model.config
  if config.tied and _HEAD in found:
    _check_tied(found[_HEAD], found[_TABLE], model.folder)
  params = _read(
      found,
      hf_names.rows(config),
      hf_names.sizes(config),
      decoder.logical_axes(config),
      jnp.dtype(dtype),
      mesh,
  )
  return dataclasses.replace(model, params=params)


def load_adapter(
    folder: epath.PathLike,
    config: config_lib.ModelConfig,
    *,
    mesh: Mesh | None = None,
) -> tuple[decoder.Params, float]:
  """Reads the adapter that `hf_export.save_adapter` or PEFT wrote.

  Args:
    folder: With adapter_config.json and adapter_model.safetensors.
    config: Of the base model.
    mesh: The devices; None is the first device.

  Returns:
    The adapters, float32, and their scale alpha / rank.

  Raises:
    CheckpointError: If files are missing or the tensors do not fit.
  """
  folder = epath.Path(folder)
  raw = hf_files.read_json(folder / 'adapter_config.json')
  rank, alpha = raw.get('r'), raw.get('lora_alpha')
  plain = raw.get('peft_type') == 'LORA' and not raw.get('use_rslora')
  if not plain or not isinstance(rank, int) or rank < 1 or not alpha:
    raise errors.CheckpointError(
        f'{folder}/adapter_config.json: peft_type {raw.get("peft_type")!r}, r'
        f' {rank!r}, lora_alpha {alpha!r}; only plain LORA is read.'
    )
  file = folder / 'adapter_model.safetensors'
  found = {t.name: t for t in hf_files.in_file(file)}
  there = lambda row: row.hf.format(0) in found
  targets = {row.path[1] for row in filter(there, hf_names.adapter_rows())}
  table = hf_names.adapter_rows(targets)
  sizes = hf_names.sizes(config, rank)
  hf_files.check(found, table, sizes, tolerated=(), at=folder)
  axes = lora.logical_axes(config, rank, {row.path[1] for row in table})
  params = _read(found, table, sizes, axes, jnp.dtype(jnp.float32), mesh)
  return params, alpha / rank


def check_vocab(model: Model, tokenizer_size: int) -> None:
  """Raises if the tokenizer has ids that the model has no embedding for.

  Args:
    model: May have more, which are padding.
    tokenizer_size: The tokenizer's largest id, plus one.

  Raises:
    CheckpointError: If so.
  """
  if tokenizer_size > model.config.vocab_size:
    raise errors.CheckpointError(
        f'{model.folder}: the tokenizer has {tokenizer_size} ids and the model'
        f' {model.config.vocab_size}; they do not belong together.'
    )


def _stop_ids(
    raw: Mapping[str, Any], generation: Mapping[str, Any]
) -> tuple[int, ...]:
  ids = generation.get('eos_token_id')
  ids = raw.get('eos_token_id') if ids is None else ids
  ids = [ids] if isinstance(ids, int) else ids or []
  return tuple(ids)


def _check_tied(
    head: hf_files.Tensor, table: hf_files.Tensor, folder: epath.Path
) -> None:
  """Raises if a head is there that a tied model would silently not use."""
  same, num_rows, step = head.shape == table.shape, table.shape[0], 4096
  for begin in range(0, num_rows if same else 0, step):
    rows = (slice(begin, min(begin + step, num_rows)), slice(None))
    same = same and np.array_equal(head.read(rows), table.read(rows))
  if not same:
    raise errors.CheckpointError(
        f'{folder}: tie_word_embeddings is true, but {_HEAD} is there and'
        f' differs from {_TABLE}.'
    )


def _read(
    found: Mapping[str, hf_files.Tensor],
    table: tuple[hf_names.Row, ...],
    sizes: hf_names.Sizes,
    axes: decoder.Params,
    dtype: np.dtype,
    mesh: Mesh | None,
) -> decoder.Params:
  """Reads one (stacked) parameter after the other."""
  axes = traverse_util.flatten_dict(axes)
  flat = {}
  for row in table:
    shape = ((sizes['L'],) if row.stacked else ()) + row.shape(sizes)
    if mesh is None:
      place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    else:
      place = rules.sharding('/'.join(row.path), shape, axes[row.path], mesh)
    flat[row.path] = _array(found, row, sizes, shape, dtype, place)
  return traverse_util.unflatten_dict(flat)


def _array(found, row, sizes, shape, dtype, place) -> jax.Array:
  parts = {}  # Devices that hold the same part share one reading of it.

  def one(name: str, index: hf_names.Slices) -> np.ndarray:
    return row.read(found[name].read, sizes, index)

  def part(index: hf_names.Slices) -> np.ndarray:
    spans = tuple(
        s.indices(size)[:2] for s, size in zip(index, shape, strict=True)
    )
    if spans in parts:
      return parts[spans]
    x = np.empty([end - begin for begin, end in spans], dtype)
    if row.stacked:
      for i, layer in enumerate(range(*spans[0])):
        x[i] = one(row.hf.format(layer), index[1:])
    else:
      x[...] = one(row.hf, index)
    parts[spans] = x
    return x

  return jax.make_array_from_callback(shape, place, part)
