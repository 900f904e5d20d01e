"""Every kind of source gives the same rows, and TensorFlow is not needed."""

import sys

import datasets
import numpy as np
import pytest
import tensorflow_datasets as tfds

from palign_jax.core import errors
from palign_jax.data import sources

ROWS = [
    {'question': 'Wie groß ist 2⁶?', 'answer': '64', 'tokens': 3},
    {'question': 'a\n\nb', 'answer': '', 'tokens': -1},
    {'question': 'c', 'answer': '7', 'tokens': 2**40},
]


@pytest.fixture(scope='module')
def tfds_folder(tmp_path_factory):
  """Writes ROWS as a TFDS dataset with two splits."""
  folder = tmp_path_factory.mktemp('tfds') / 'some_traces' / '1.0.0'
  folder.mkdir(parents=True)
  features = tfds.features.FeaturesDict(
      {
          'question': tfds.features.Text(),
          'answer': tfds.features.Text(),
          'tokens': tfds.features.Scalar(np.int64),
      }
  )
  identity = tfds.core.dataset_info.DatasetIdentity(
      name='some_traces',
      version=tfds.core.Version('1.0.0'),
      data_dir=str(folder),
      module_name='',
  )
  info = tfds.core.DatasetInfo(builder=identity, features=features)
  writer = tfds.core.SequentialWriter(
      info, max_examples_per_shard=2, file_format='array_record'
  )
  splits = {'train': ROWS, 'test': ROWS[:1]}
  writer.initialize_splits(list(splits))
  writer.add_examples(splits)
  writer.close_all()
  return folder


def test_tfds(tfds_folder):
  assert list(sources.open_source(f'tfds:{tfds_folder}#train')) == ROWS
  assert list(sources.open_source(f'tfds:{tfds_folder}#test')) == ROWS[:1]
  assert 'tensorflow' not in sys.modules


def test_hf(tmp_path):
  dataset = datasets.Dataset.from_list(ROWS)
  dataset.save_to_disk(tmp_path / 'one', num_shards=2)
  both = datasets.DatasetDict(train=dataset, test=dataset.select([0]))
  both.save_to_disk(tmp_path / 'two')
  assert list(sources.open_source(f'hf:{tmp_path / "one"}')) == ROWS
  assert list(sources.open_source(f'hf:{tmp_path / "two"}#train')) == ROWS
  assert list(sources.open_source(f'hf:{tmp_path / "two"}#test')) == ROWS[:1]
  with pytest.raises(errors.DataError, match='no split is named; write one'):
    list(sources.open_source(f'hf:{tmp_path / "two"}'))
  with pytest.raises(errors.DataError, match="no split 'x', it holds one"):
    list(sources.open_source(f'hf:{tmp_path / "one"}#x'))


def test_jsonl(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{"a": "ß"}\n\n{"a": 2}\n')
  assert list(sources.open_source(str(tmp_path / 'x.jsonl'))) == [
      {'a': 'ß'},
      {'a': 2},
  ]


@pytest.mark.parametrize(
    'kind, match',
    [
        ('tfds:', 'no dataset_info.json there; name the folder of one version'),
        ('hf:', 'no state.json there; name a folder that'),
        ('', 'no such file'),
    ],
)
def test_nothing_there(tmp_path, kind, match):
  with pytest.raises(errors.DataError, match=match):
    list(sources.open_source(f'{kind}{tmp_path}/nothing'))


def test_unknown_split(tfds_folder):
  with pytest.raises(errors.DataError, match=r"no split 'x'.*\['test', 'train"):
    list(sources.open_source(f'tfds:{tfds_folder}#x'))
