"""A cloud, and machines in it, out of shell scripts in a folder."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
# All that the scripts may reach: a real python would be installed into, a real
# gcloud asked for machines.
TOOLS = (
    *('basename', 'bash', 'cat', 'cksum', 'cp', 'cut', 'dirname', 'grep'),
    *('gzip', 'head', 'hostname', 'id', 'ln', 'mkdir', 'mktemp', 'rm', 'sed'),
    *('sha256sum', 'sleep', 'tail', 'tar', 'tee', 'touch', 'wc'),
)
PYTHONS = ('python', 'python3', 'python3.11', 'python3.12')


class Cloud:
  """Runs launch scripts with the fakes first on PATH.

  Attributes:
    folder: Where the fakes keep what they know.
  """

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self._copy_repository()
    (folder / 'units').mkdir()
    (folder / 'bin').mkdir()
    for tool in TOOLS:
      (folder / 'bin' / tool).symlink_to(shutil.which(tool))
    self._put('fake_gcloud.sh', 'gcloud')
    for name in ('sudo', 'systemctl', *PYTHONS):
      self._put('fake_worker.sh', name)

  def _copy_repository(self) -> None:
    """Copies what the scripts look at: they copy it again and again."""
    self.repository.mkdir()
    for pattern in ('launch/*.*', 'configs/*.py', 'palign_jax/main.py', '*.t*'):
      for file in ROOT.glob(pattern):
        target = self.repository / file.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)

  @property
  def repository(self) -> pathlib.Path:
    """Where the scripts run."""
    return self.folder / 'repository'

  def _put(self, script: str, name: str) -> None:
    path = self.folder / 'bin' / name
    shutil.copy(HERE / script, path)
    path.chmod(0o755)

  @property
  def variables(self) -> dict[str, str]:
    """The environment of what runs in this cloud."""
    return {
        'PATH': str(self.folder / 'bin'),
        'PIP_NO_INDEX': '1',
        'HOME': str(self.folder),
        'TMPDIR': str(self.folder),
        'CLOUD': str(self.folder),
        'PALIGN_UNITS': str(self.folder / 'units'),
    }

  def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
    """Runs `bash COMMAND...` in a small copy of the repository."""
    return subprocess.run(
        [shutil.which('bash'), *command],
        cwd=self.repository,
        env=self.variables | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )

  @property
  def calls(self) -> list[str]:
    """What gcloud was called with."""
    path = self.folder / 'calls'
    return path.read_text().splitlines() if path.exists() else []

  def forget_calls(self) -> None:
    (self.folder / 'calls').unlink(missing_ok=True)


@pytest.fixture
def cloud(tmp_path) -> Cloud:
  return Cloud(tmp_path)
