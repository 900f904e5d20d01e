"""A stand-in for gs://: what cannot be done there is an error here.

Objects appear whole when they are closed; there is no append, no rename, no
folder without an object in it.
"""

from collections.abc import Iterator
import contextlib
import fnmatch
import io
import os

from etils import epath
from etils.epath import backend, gpath, stat_utils


class Refused(AssertionError):
  """Something was asked that an object store cannot do."""


class Crash(BaseException):
  """The process would be dead."""


class _Upload(io.BytesIO):
  """Becomes an object when it is closed."""

  mode, name = 'wb', ''  # What else a file has, for the type checks.

  def __init__(self, store: 'Objects', path: str):
    super().__init__()
    self._store, self._path = store, path

  def close(self) -> None:
    if not self.closed:
      data = self.getvalue()
      super().close()
      self._store.put(self._path, data)


class Objects(backend.Backend):
  """Objects by name, for epath; files on disk can be read through it."""

  def __init__(self):
    self.objects: dict[str, bytes] = {}
    self._puts: dict[str, int] = {}
    self.num_puts, self.fail_at = 0, 0
    self.num_drops, self.fail_at_drop = 0, 0

  def put(self, path: str, data: bytes) -> None:
    """Makes an object appear, or raises `Crash` at put `fail_at`."""
    self.num_puts += 1
    if self.num_puts == self.fail_at:
      raise Crash(path)
    self.objects[path], self._puts[path] = data, self.num_puts

  def drop(self, path: str) -> None:
    """Makes an object go, or raises `Crash` at number `fail_at_drop`."""
    self.num_drops += 1
    if self.num_drops == self.fail_at_drop:
      raise Crash(path)
    del self.objects[path]

  def open(self, path, mode):
    path = os.fspath(path)
    if not path.startswith('gs://'):
      return open(path, mode)
    if 'a' in mode or '+' in mode:
      raise Refused(f'append to {path}')
    if 'r' in mode and path not in self.objects:
      raise FileNotFoundError(path)
    read = 'r' in mode
    data = io.BytesIO(self.objects[path]) if read else None
    raw = data or _Upload(self, path)
    return raw if 'b' in mode else io.TextIOWrapper(raw, 'utf-8')

  def _below(self, path) -> list[str]:
    start = os.fspath(path).rstrip('/') + '/'
    return sorted(name for name in self.objects if name.startswith(start))

  def exists(self, path):
    if not os.fspath(path).startswith('gs://'):
      return os.path.exists(path)
    return os.fspath(path) in self.objects or self.isdir(path)

  def isdir(self, path):
    if not os.fspath(path).startswith('gs://'):
      return os.path.isdir(path)
    return bool(self._below(path))

  def listdir(self, path):
    start = len(os.fspath(path).rstrip('/')) + 1
    names = {name[start:].split('/')[0] for name in self._below(path)}
    if not names:
      raise FileNotFoundError(path)
    return sorted(names)

  def glob(self, path):
    depth = os.fspath(path).count('/')
    cut = lambda name: '/'.join(name.split('/')[: depth + 1])
    here = {cut(name) for name in self.objects if name.count('/') >= depth}
    return sorted(fnmatch.filter(here, os.fspath(path)))

  def walk(self, top, *, top_down=True, on_error=None):
    raise Refused('nobody walks')

  def makedirs(self, path, *, exist_ok=False, mode=None):
    pass  # There are no folders.

  def mkdir(self, path, *, exist_ok=False, mode=None):
    pass

  def rmtree(self, path):
    below = self._below(path)
    if not below:
      raise FileNotFoundError(path)
    for name in below:
      self.drop(name)

  def remove(self, path):
    if os.fspath(path) not in self.objects:
      raise FileNotFoundError(path)
    self.drop(os.fspath(path))

  def rename(self, path, dst):
    raise Refused(f'rename {path} to {dst}')

  replace = rename

  def copy(self, path, dst, overwrite):
    if self.exists(dst) and not overwrite:
      raise FileExistsError(dst)
    with self.open(path, 'rb') as source, self.open(dst, 'wb') as target:
      target.write(source.read())

  def stat(self, path):
    if os.fspath(path) not in self.objects:
      raise FileNotFoundError(path)
    path = os.fspath(path)
    return stat_utils.StatResult(
        is_directory=False,
        length=len(self.objects[path]),
        mtime=self._puts[path],
        owner=None,
        group=None,
        mode=0,
    )


@contextlib.contextmanager
def bucket() -> Iterator[tuple[epath.Path, Objects]]:
  """Yields gs://bucket and what is in it, while nothing else is on gs://."""
  objects, before = Objects(), gpath._PREFIX_TO_BACKEND['gs']
  gpath._PREFIX_TO_BACKEND['gs'] = objects
  gpath._GCS_BACKENDS, kinds = frozenset({objects}), gpath._GCS_BACKENDS
  installed, gpath._is_tf_installed = gpath._is_tf_installed, lambda: False
  try:
    yield epath.Path('gs://bucket'), objects
  finally:
    gpath._PREFIX_TO_BACKEND['gs'] = before
    gpath._GCS_BACKENDS, gpath._is_tf_installed = kinds, installed
