"""An exported folder is complete and small to write, or is not there."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from safetensors import numpy as st

from palign_jax.checkpoints import hf_export, hf_import, hf_writer
from palign_jax.core import errors, stopping
from palign_jax.parallel import mesh as mesh_lib
from tests import stores
from tests.checkpoints import families


@pytest.fixture
def save(tmp_path):
  tokenizer = families.write_tokenizer(tmp_path / 'tokenizer')

  def save(model, **kwargs):
    defaults = {'tokenizer_folder': tokenizer, 'dtype': jnp.float32}
    hf_export.save(tmp_path / 'out', model, **defaults | kwargs)
    return tmp_path / 'out'

  return save


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_files(cases, save, tmp_path):
  model = cases('qwen2_tied').model
  generation = {'eos_token_id': [7, 3], 'temperature': 0.7, 'do_sample': True}
  out = save(dataclasses.replace(model, raw_generation=generation))
  assert names(out) == [
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
      'tokenizer_config.json',
  ]
  assert json.loads((out / 'generation_config.json').read_text()) == generation
  copied = (out / 'tokenizer.json').read_bytes()
  assert copied == (tmp_path / 'tokenizer' / 'tokenizer.json').read_bytes()
  assert names(tmp_path) == ['out', 'tokenizer']


def test_generation_config_is_made_where_there_was_none(cases, save):
  model = cases('qwen2_tied').model
  model = dataclasses.replace(model, raw_generation={}, stop_ids=(5, 6))
  out = save(model)
  made = json.loads((out / 'generation_config.json').read_text())
  assert made == {'bos_token_id': 1, 'eos_token_id': [5, 6]}
  assert hf_import.load(out, dtype=jnp.float32).stop_ids == (5, 6)


def test_export_of_an_import_is_the_same_tensors(cases, save):
  case = cases('qwen3')
  out = save(case.model)
  want = st.load_file(case.folder / 'model.safetensors')
  got = st.load_file(out / 'model.safetensors')
  assert got.keys() == want.keys()
  for name, x in want.items():
    np.testing.assert_array_equal(got[name], x)


def test_from_a_mesh_in_bfloat16(cases, save):
  case = cases('qwen2_tied')
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  out = save(
      hf_import.load(case.folder, dtype=jnp.float32, mesh=mesh),
      dtype=jnp.bfloat16,
  )
  assert json.loads((out / 'config.json').read_text())['torch_dtype'] == (
      'bfloat16'
  )
  with safetensors.safe_open(out / 'model.safetensors', 'np') as f:
    assert {f.get_slice(name).get_dtype() for name in f.keys()} == {'BF16'}
  jax.tree.map(
      np.testing.assert_array_equal,
      hf_import.load(out, dtype=jnp.bfloat16).params,
      hf_import.load(case.folder, dtype=jnp.bfloat16).params,
  )


def test_above_the_bound_weights_go_to_several_files(cases, save):
  model = cases('qwen2_tied').model
  out = save(model, max_file_bytes=20_000)
  files = sorted(out.glob('*.safetensors'))
  assert files[0].name == f'model-00001-of-{len(files):05d}.safetensors'
  assert len(files) > 2
  assert all(
      sum(x.nbytes for x in st.load_file(f).values()) <= 20_000 for f in files
  )
  index = json.loads((out / 'model.safetensors.index.json').read_text())
  total = sum(x.nbytes for x in jax.tree.leaves(model.params))
  assert index['metadata']['total_size'] == total
  again = hf_import.load(out, dtype=jnp.float32).params
  jax.tree.map(np.testing.assert_array_equal, again, model.params)


def test_one_tensor_at_a_time(cases, save, monkeypatch):
  alive, most = [0], [0]
  fetch = hf_export._fetch

  def counting(x, layer):
    alive[0] += 1
    most[0] = max(most[0], alive[0])
    return fetch(x, layer)

  write = hf_writer._write_tensor

  def done(f, tensor, dtype):
    write(f, tensor, dtype)
    alive[0] -= 1

  monkeypatch.setattr(hf_export, '_fetch', counting)
  monkeypatch.setattr(hf_writer, '_write_tensor', done)
  save(cases('qwen2_tied').model)
  assert (most, alive) == ([1], [0])


def test_an_earlier_export_is_replaced_whole(cases, save):
  save(cases('qwen2_tied').model, max_file_bytes=20_000)
  out = save(cases('qwen2').model)
  assert 'model.safetensors.index.json' not in names(out)
  again = hf_import.load(out, dtype=jnp.float32)
  assert again.config == cases('qwen2').model.config


@pytest.mark.parametrize('process', [0, 1])  # Or one would wait for the other.
def test_other_folders_are_not_touched(
    cases, save, tmp_path, monkeypatch, process
):
  monkeypatch.setattr(jax, 'process_index', lambda: process)
  (tmp_path / 'out').mkdir()
  (tmp_path / 'out' / 'thesis.txt').write_text('mine')
  with pytest.raises(errors.CheckpointError, match='is no exported model'):
    save(cases('qwen2_tied').model)
  assert names(tmp_path / 'out') == ['thesis.txt']


def test_a_full_disk_leaves_the_earlier_export(
    cases, save, tmp_path, monkeypatch
):
  save(cases('qwen2_tied').model)

  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(hf_writer, '_write_tensor', full)
  with pytest.raises(errors.CheckpointError, match='out: cannot.*No space'):
    save(cases('qwen2').model)
  assert names(tmp_path) == ['out', 'tokenizer']
  again = hf_import.load(tmp_path / 'out', dtype=jnp.float32)
  assert again.config == cases('qwen2_tied').model.config


def test_no_tokenizer(cases, save, tmp_path):
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.CheckpointError, match='no tokenizer files'):
    save(cases('qwen2_tied').model, tokenizer_folder=tmp_path / 'empty')
  assert not (tmp_path / 'out').exists()


FOLDER = 'gs://bucket/sft/export'


@pytest.fixture
def on_store(cases, tmp_path):
  """A store, and what exports a model into it as several files."""
  tokenizer = families.write_tokenizer(tmp_path / 'tokenizer')

  def export(name):
    hf_export.save(
        FOLDER,
        cases(name).model,
        tokenizer_folder=tokenizer,
        dtype=jnp.float32,
        max_file_bytes=20_000,
    )

  with stores.bucket() as (_, store):
    yield store, export


def is_whole(objects):
  return f'{FOLDER}/config.json' in objects and (
      f'{FOLDER}.unfinished' not in objects
  )


@pytest.mark.parametrize('moment', ['fail_at', 'fail_at_drop'])
def test_killed_at_any_moment_on_a_store_it_is_exported_anew(on_store, moment):
  store, export = on_store
  export('qwen2_tied')
  want = dict(store.objects)
  assert is_whole(want)
  for number in range(1, 99):
    export('qwen2')  # What is there has other files.
    before = dict(store.objects)
    store.num_puts = store.num_drops = 0
    setattr(store, moment, number)
    try:
      export('qwen2_tied')
      break
    except stores.Crash:
      assert not is_whole(store.objects) or store.objects == before
    finally:
      setattr(store, moment, 0)
    export('qwen2_tied')
    assert store.objects == want
  assert store.objects == want
  assert 8 < number < 99


def test_told_to_end_within_a_tensor_on_a_store_it_is_exported_anew(
    on_store, monkeypatch
):
  store, export = on_store
  export('qwen2_tied')
  want = dict(store.objects)
  write, count = hf_writer._write_tensor, itertools.count(1)

  def told(f, tensor, dtype):
    if next(count) == 2:
      raise stopping.Stopped
    write(f, tensor, dtype)

  with monkeypatch.context() as patch, pytest.raises(stopping.Stopped):
    patch.setattr(hf_writer, '_write_tensor', told)
    export('qwen2_tied')
  *_, short = sorted(n for n in store.objects if n.endswith('.safetensors'))
  assert 0 < len(store.objects[short]) < len(want[short])
  assert not is_whole(store.objects)
  export('qwen2_tied')
  assert store.objects == want


def test_other_folders_on_a_store_are_not_touched(on_store):
  store, export = on_store
  store.objects[f'{FOLDER}/thesis.txt'] = b'mine'
  with pytest.raises(errors.CheckpointError, match='is no exported model'):
    export('qwen2_tied')
  assert store.objects == {f'{FOLDER}/thesis.txt': b'mine'}
