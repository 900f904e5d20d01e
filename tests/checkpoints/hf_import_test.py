"""A folder is read whole, once, onto its mesh; or refused with a reason."""

import collections
import json
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as st

from palign_jax.checkpoints import hf_files, hf_import
from palign_jax.core import errors
from palign_jax.parallel import mesh as mesh_lib

NAME = 'model.layers.1.self_attn.k_proj.weight'


@pytest.fixture
def folder(cases, tmp_path):
  """A copy of a checkpoint, to be spoilt."""
  shutil.copytree(cases('qwen2_tied').folder, tmp_path / 'model')
  return tmp_path / 'model'


def edit(folder, change):
  """Applies `change` to the dict of tensors."""
  tensors = dict(st.load_file(folder / 'model.safetensors'))
  change(tensors)
  st.save_file(tensors, folder / 'model.safetensors')


def edit_json(path, **values):
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder, **kwargs):
  return hf_import.load(folder, **({'dtype': jnp.float32} | kwargs))


def assert_same(got, want):
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_each_tensor_is_read_once_straight_to_its_sharding(cases, monkeypatch):
  case = cases('qwen2_tied')
  read = collections.Counter()
  plain = hf_files.Tensor.read

  def counting(self, index):
    x = plain(self, index)
    read[self.name] += x.size
    return x

  monkeypatch.setattr(hf_files.Tensor, 'read', counting)
  mesh = mesh_lib.make({'data': 2, 'fsdp': 2, 'tensor': 2})
  model = load(case.folder, mesh=mesh)
  tensors = st.load_file(case.folder / 'model.safetensors')
  assert read == {name: x.size for name, x in tensors.items()}
  up = model.params['layers']['up']['kernel']
  assert up.sharding.spec == jax.P(None, ('fsdp',), ('tensor',))
  assert up.addressable_shards[0].data.shape == (2, 16, 28)
  assert_same(model.params, case.model.params)


def test_without_a_mesh_all_is_on_one_device(cases):
  (device,) = cases('qwen2').model.params['embed']['table'].devices()
  assert device == jax.devices()[0]


def test_several_files(cases, folder):
  tensors = st.load_file(folder / 'model.safetensors')
  (folder / 'model.safetensors').unlink()
  places = {}
  for i, name in enumerate(tensors):
    places[name] = f'part-{i % 3}.safetensors'
  for file in set(places.values()):
    part = {k: x for k, x in tensors.items() if places[k] == file}
    st.save_file(part, folder / file)
  index = folder / 'model.safetensors.index.json'
  index.write_text(json.dumps({'weight_map': places}))
  assert_same(load(folder).params, cases('qwen2_tied').model.params)

  shutil.copy(folder / 'part-1.safetensors', folder / 'part-2.safetensors')
  with pytest.raises(errors.CheckpointError, match='both in part-1.*part-2'):
    load(folder)
  (folder / 'part-1.safetensors').unlink()
  with pytest.raises(errors.CheckpointError, match='part-1.safetensors: no s'):
    load(folder)
  index.write_text('{}')
  with pytest.raises(errors.CheckpointError, match='it has no weight_map'):
    load(folder)


@pytest.mark.parametrize('stored', [np.float16, ml_dtypes.bfloat16])
def test_stored_in_another_dtype(cases, folder, stored):
  edit(folder, lambda t: t.update({k: x.astype(stored) for k, x in t.items()}))
  rounded = jax.tree.map(
      lambda x: np.asarray(x).astype(stored).astype(np.float32),
      cases('qwen2_tied').model.params,
  )
  assert_same(load(folder).params, rounded)


def test_cast_to_bfloat16_rounds_to_nearest(cases, folder):
  params = load(folder, dtype=jnp.bfloat16).params
  want = jax.tree.map(
      lambda x: x.astype(jnp.bfloat16), cases('qwen2_tied').model.params
  )
  assert_same(params, want)


@pytest.mark.parametrize(
    'config, generation, want',
    [
        (7, {'eos_token_id': [7, 3]}, (7, 3)),
        (7, {'eos_token_id': 3}, (3,)),
        (7, {'do_sample': True}, (7,)),
        ([7, 9], None, (7, 9)),
        (None, None, ()),
    ],
)
def test_stop_ids(folder, config, generation, want):
  edit_json(folder / 'config.json', eos_token_id=config)
  (folder / 'generation_config.json').unlink(missing_ok=True)
  if generation is not None:
    text = json.dumps(generation)
    (folder / 'generation_config.json').write_text(text)
  assert load(folder).stop_ids == want


def test_vocabulary_may_be_larger_than_the_tokenizers(cases):
  model = cases('qwen2_tied').model
  hf_import.check_vocab(model, 104)
  with pytest.raises(errors.CheckpointError, match='has 105 ids and the model'):
    hf_import.check_vocab(model, 105)


def test_missing_extra_and_misshapen_tensors(folder):
  good = (folder / 'model.safetensors').read_bytes()

  def refused(change, message):
    (folder / 'model.safetensors').write_bytes(good)
    edit(folder, change)
    with pytest.raises(errors.CheckpointError, match=message):
      load(folder)

  refused(lambda t: t.pop(NAME), f'model: lacks {NAME}.')
  extra = {'model.layers.1.self_attn.o_proj.bias': np.zeros(32)}
  refused(lambda t: t.update(extra), 'has no model.layers.1.*o_proj.bias')
  extra = {'model.layers.2.mlp.up_proj.weight': np.zeros(32)}
  refused(lambda t: t.update(extra), 'has no model.layers.2.mlp.up_proj')
  shape = {NAME: np.zeros((16, 31), np.float32)}
  refused(lambda t: t.update(shape), r'shape \(16, 31\).*for \(16, 32\)')
  eight = {NAME: np.zeros((16, 32), np.int8)}
  refused(lambda t: t.update(eight), 'k_proj.weight is I8; only F32, BF16')


def test_nothing_is_read_before_all_headers_are_checked(folder, monkeypatch):
  edit(folder, lambda t: t.pop('model.norm.weight'))
  monkeypatch.setattr(hf_files.Tensor, 'read', lambda *_: pytest.fail('read'))
  with pytest.raises(errors.CheckpointError, match='lacks model.norm.weight'):
    load(folder)


def test_old_buffers_are_passed_over(cases, folder):
  name = 'model.layers.1.self_attn.rotary_emb.inv_freq'
  edit(folder, lambda t: t.update({name: np.zeros(4, np.float32)}))
  assert_same(load(folder).params, cases('qwen2_tied').model.params)


def test_head_beside_a_tied_table(folder):
  copy = lambda t: t.update({'lm_head.weight': t['model.embed_tokens.weight']})
  edit(folder, copy)
  assert 'lm_head' not in load(folder).params
  edit(folder, lambda t: t.update({'lm_head.weight': t['lm_head.weight'] + 1}))
  with pytest.raises(errors.CheckpointError, match='true, but lm_head.weight'):
    load(folder)


def test_untied_model_without_a_head(folder):
  edit_json(folder / 'config.json', tie_word_embeddings=False)
  with pytest.raises(errors.CheckpointError, match='lacks lm_head.weight'):
    load(folder)


def test_incomplete_folders(folder, tmp_path):
  with pytest.raises(errors.CheckpointError, match='nowhere: no such folder'):
    load(tmp_path / 'nowhere')
  (folder / 'model.safetensors').write_bytes(b'short')
  with pytest.raises(errors.CheckpointError, match='no valid safetensors'):
    load(folder)
  (folder / 'model.safetensors').unlink()
  with pytest.raises(errors.CheckpointError, match='no weights; it needs'):
    load(folder)
  (folder / 'config.json').write_text('{"architectures": ')
  with pytest.raises(errors.CheckpointError, match='json: no valid JSON'):
    load(folder)
  (folder / 'config.json').write_text('[]')
  with pytest.raises(errors.CheckpointError, match='holds no JSON object'):
    load(folder)
  (folder / 'config.json').unlink()
  with pytest.raises(errors.CheckpointError, match='config.json: no such file'):
    load(folder)


@pytest.mark.parametrize(
    'change, message',
    [
        ({'peft_type': 'IA3'}, "peft_type 'IA3'"),
        ({'use_rslora': True}, 'only plain LORA'),
        ({'r': 0}, 'r 0'),
    ],
)
def test_adapters_of_other_kinds(cases, tmp_path, change, message):
  raw = {'peft_type': 'LORA', 'r': 2, 'lora_alpha': 4} | change
  (tmp_path / 'adapter_config.json').write_text(json.dumps(raw))
  with pytest.raises(errors.CheckpointError, match=message):
    hf_import.load_adapter(tmp_path, cases('qwen2_tied').model.config)
