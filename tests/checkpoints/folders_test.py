"""A model is known by what its folder holds, wherever that lies."""

from etils import epath
import huggingface_hub
from huggingface_hub import errors as hub_errors
import pytest

from palign_jax.checkpoints import folders
from palign_jax.core import errors


def write(folder, **files):
  folder.mkdir(parents=True)
  for name, content in files.items():
    name = name.replace('_', '.')
    (folder / name).write_bytes(content)
  return folder


SMALL = dict(config_json=b'{}', model_safetensors=b'abc')


def test_hash_follows_a_moved_folder(tmp_path):
  first = write(tmp_path / 'a', **SMALL)
  moved = write(tmp_path / 'b' / 'c', **SMALL, README_md=b'not the model')
  assert folders.content_hash(first) == folders.content_hash(moved)
  assert len(folders.content_hash(first)) == 32


@pytest.mark.parametrize(
    'change',
    [
        dict(config_json=b'[]'),
        dict(model_safetensors=b'abd'),
        dict(tokenizer_json=b'{}'),
        dict(config_json=b'{}a', model_safetensors=b'bc'),
    ],
)
def test_hash_sees_a_change(tmp_path, change):
  first = write(tmp_path / 'a', **SMALL)
  second = write(tmp_path / 'b', **SMALL | change)
  assert folders.content_hash(first) != folders.content_hash(second)


def test_hash_samples_a_large_file(tmp_path):
  size = 65 << 20
  hashes = set()
  for name, at in {'a': None, 'b': 9, 'c': size - 9, 'd': 32 << 20}.items():
    folder = write(tmp_path / name, config_json=b'{}')
    with open(folder / 'model.safetensors', 'wb') as f:
      f.truncate(size)
      if at is not None:
        f.seek(at)
        f.write(b'x' * (1 << 20))
        f.truncate(size)
    hashes.add(folders.content_hash(folder))
  assert len(hashes) == 4


def test_a_folder_on_disk_is_itself(tmp_path):
  assert folders.stage(tmp_path) == tmp_path


def test_a_remote_folder_is_copied_once(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  remote = epath.Path(write(tmp_path / 'remote', **SMALL, README_md=b'no'))
  here = folders._copy(remote)
  assert here.is_relative_to(tmp_path / 'home')
  files = {path.name: path.read_bytes() for path in here.iterdir()}
  assert files == {'config.json': b'{}', 'model.safetensors': b'abc'}
  (here / 'config.json').write_text('kept')
  assert folders._copy(remote) == here
  assert (here / 'config.json').read_text() == 'kept'
  (remote / 'config.json').write_text('{"new": 1}')
  assert (folders._copy(remote) / 'config.json').read_text() == '{"new": 1}'
  with pytest.raises(errors.CheckpointError, match='no model in it'):
    folders._copy(epath.Path(tmp_path / 'home'))


def test_a_hub_name(tmp_path, monkeypatch):
  asked = []

  def download(name, allow_patterns):
    asked.append((name, '*.safetensors' in allow_patterns))
    return str(tmp_path)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  assert folders.stage('Qwen/Qwen2.5-0.5B') == tmp_path
  assert asked == [('Qwen/Qwen2.5-0.5B', True)]


def test_a_hub_name_without_network(monkeypatch):
  def download(*_, **__):
    raise hub_errors.LocalEntryNotFoundError('Cannot find it.\nMore.')

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', download)
  with pytest.raises(
      errors.CheckpointError, match='Hub did not give it .Local'
  ):
    folders.stage('Qwen/Qwen2.5-0.5B')


@pytest.mark.parametrize('source', ['/no/such', 'no', 'a/b/c', './a/b'])
def test_no_such_folder(source):
  with pytest.raises(errors.CheckpointError, match='no such folder; give a'):
    folders.stage(source)


def test_a_file_is_no_folder(tmp_path):
  (tmp_path / 'x').write_text('')
  with pytest.raises(errors.CheckpointError, match='no such folder; give a'):
    folders.stage(tmp_path / 'x')
