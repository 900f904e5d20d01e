"""Where a model's folder is: on disk, on gs://, or by its name on the Hub."""

import hashlib
import os
import pathlib
import re

from etils import epath
import huggingface_hub

from palign_jax.core import errors

# What a model's folder holds for us, and for those who load our export.
TOKENIZER_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'added_tokens.json',
    'vocab.json',
    'merges.txt',
    'tokenizer.model',
    'chat_template.jinja',
    'chat_template.json',
)
_PATTERNS = ('*.json', '*.safetensors', *TOKENIZER_FILES)
_HUB_ID = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')
_MIB = 1 << 20
_SAMPLES = 64  # Blocks of a large file that its hash looks at.
_SAMPLE = 16 << 10  # Bytes of each.


def stage(source: epath.PathLike) -> epath.Path:
  """Returns the folder on this machine's disk.

  A folder on disk is itself; one on gs:// is copied once; else it is a name
  on the Hub, which huggingface_hub downloads once into its own cache.

  Raises:
    CheckpointError: If there is no such folder, or it cannot be fetched.
  """
  path = epath.Path(source)
  if '://' in str(source):
    return _copy(path)
  if path.is_dir():
    return path
  if path.exists() or not _HUB_ID.fullmatch(str(source)):
    raise errors.CheckpointError(
        f'{source}: no such folder; give a folder with config.json and'
        ' *.safetensors, a gs:// folder, or a name on the Hub (owner/name).'
    )
  try:
    return epath.Path(
        huggingface_hub.snapshot_download(
            str(source), allow_patterns=list(_PATTERNS)
        )
    )
  except Exception as e:  # Its errors share no base, nor do those of requests.
    reason = str(e).strip().splitlines()[0] if str(e).strip() else ''
    raise errors.CheckpointError(
        f'{source}: no such folder here, and the Hub did not give it'
        f' ({type(e).__name__}: {reason}); download it where there is a network'
        ' and give its folder.'
    ) from e


def files(folder: epath.PathLike) -> list[epath.Path]:
  """Returns the files of a model's folder that bear on it, by name."""
  inside = epath.Path(folder).iterdir()
  wanted = lambda p: any(pathlib.PurePath(p.name).match(x) for x in _PATTERNS)
  return sorted((p for p in inside if wanted(p)), key=lambda p: p.name)


def _copy(path: epath.Path) -> epath.Path:
  """Copies a remote folder here, unless these very files are here already."""
  if not path.is_dir() or not (found := files(path)):
    raise errors.CheckpointError(f'{path}: no such folder, or no model in it.')
  stats = [(p.name, p.stat().length, p.stat().mtime) for p in found]
  digest = hashlib.blake2b(repr((str(path), stats)).encode(), digest_size=16)
  cache = epath.Path('~/.cache/palign_jax').expanduser()
  target = cache / digest.hexdigest()
  for p in found:
    # Each file appears whole; several processes of a host may race here.
    if not (target / p.name).exists():
      target.mkdir(parents=True, exist_ok=True)
      beside = target / f'.{p.name}.{os.getpid()}'
      p.copy(beside, overwrite=True)
      beside.rename(target / p.name)
  return target


def content_hash(folder: epath.PathLike) -> str:
  """Returns what tells a model from another, wherever its folder lies.

  It covers name, size and content of every file that bears on the model.  Of
  a file above 64 MiB it reads the first and the last MiB (tensor headers come
  first) and 64 blocks of 16 KiB spread evenly between.
  """
  digest = hashlib.blake2b(digest_size=16)
  for path in files(folder):
    size = path.stat().length
    digest.update(f'{path.name}\0{size}\0'.encode())
    with path.open('rb') as f:
      if size <= 64 * _MIB:
        while block := f.read(_MIB):
          digest.update(block)
        continue
      digest.update(f.read(_MIB))
      for i in range(_SAMPLES):
        f.seek(_MIB + i * (size - 2 * _MIB) // _SAMPLES)
        digest.update(f.read(_SAMPLE))
      f.seek(size - _MIB)
      digest.update(f.read(_MIB))
  return digest.hexdigest()
