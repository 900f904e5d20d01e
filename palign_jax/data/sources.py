"""Rows of records from where people keep them: one spelling for each place.

    path/to/file.jsonl        JSON Lines, on disk or gs://
    tfds:FOLDER[#SPLIT]       a TFDS dataset's version folder, in array_record
    hf:FOLDER[#SPLIT]         what `datasets.save_to_disk` wrote

TFDS is read without TensorFlow, which is why its records must be array_record;
a saved Hugging Face dataset is Arrow files, and read as such.
"""

from collections.abc import Iterator
import json
from typing import Any

from etils import epath

from palign_jax.core import errors, jsonl

Row = dict[str, Any]


def open_source(spec: str) -> Iterator[Row]:
  """Yields the rows of a source, in order; text is str, never bytes.

  Args:
    spec: Where it is, as the module describes it.

  Returns:
    An iterator; it opens the source when the first row is asked for.

  Raises:
    DataError: If there is no such source, or it cannot be read.
  """
  kind, _, rest = spec.partition(':')
  if kind == 'tfds':
    yield from _tfds(rest)
  elif kind == 'hf':
    yield from _hf(rest)
  else:
    yield from jsonl.read(spec)


def _tfds(place: str) -> Iterator[Row]:
  # Imported late: it takes seconds, and most runs do not use it.
  import tensorflow_datasets as tfds

  folder, _, split = place.partition('#')
  if not (epath.Path(folder) / 'dataset_info.json').is_file():
    raise errors.DataError(
        f'tfds:{folder}: no dataset_info.json there; name the folder of one'
        ' version, such as .../my_dataset/1.0.0.'
    )
  builder = tfds.builder_from_directory(folder)
  file_format = builder.info.file_format
  if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
    raise errors.DataError(
        f'tfds:{folder}: its files are {file_format.value}, which needs'
        " TensorFlow; prepare it anew with file_format='array_record'."
    )
  split = _split(f'tfds:{folder}', split, sorted(builder.info.splits))
  for row in builder.as_data_source(split):
    yield {name: _plain(value) for name, value in row.items()}


def _hf(place: str) -> Iterator[Row]:
  # Imported late: it takes long, and most runs do not use it.
  import pyarrow as pa

  folder, _, split = place.partition('#')
  where = epath.Path(folder)
  if (where / 'dataset_dict.json').is_file():
    splits = json.loads((where / 'dataset_dict.json').read_text())['splits']
    where /= _split(f'hf:{folder}', split, splits)
  elif split:
    raise errors.DataError(
        f'hf:{folder}: no split {split!r}, it holds one dataset without a name;'
        ' leave the # away.'
    )
  if not (where / 'state.json').is_file():
    raise errors.DataError(
        f'hf:{folder}: no state.json there; name a folder that'
        ' datasets.save_to_disk wrote.'
    )
  state = json.loads((where / 'state.json').read_text())
  for file in state['_data_files']:
    with (where / file['filename']).open('rb') as f:
      for batch in pa.ipc.open_stream(f):
        yield from batch.to_pylist()


def _split(where: str, wanted: str, splits: list[str]) -> str:
  """Returns the split that is wanted, or the only one there is."""
  if wanted in splits:
    return wanted
  if not wanted and len(splits) == 1:
    return splits[0]
  came = f'no split {wanted!r}' if wanted else 'no split is named'
  raise errors.DataError(
      f'{where}: {came}; write one of {splits} after a #, as in'
      f' {where}#{splits[0]}.'
  )


def _plain(value: Any) -> Any:
  """Returns a TFDS value as JSON would hold it."""
  if isinstance(value, bytes):
    return value.decode('utf-8')
  if hasattr(value, 'tolist'):  # NumPy's scalars and arrays.
    return _plain(value.tolist())
  if isinstance(value, list):
    return [_plain(part) for part in value]
  if isinstance(value, dict):
    return {name: _plain(part) for name, part in value.items()}
  return value
