"""Commands of the documents, as they stand: fields, slices, batches."""

import dataclasses
import math
import pathlib
import re
import shlex

from absl import flags as absl_flags
from ml_collections import config_flags
import pytest

from palign_jax.models import presets
from palign_jax.planning import topology
from palign_jax.stages import validation

# ml_collections loads configs in an old way.
pytestmark = pytest.mark.filterwarnings(
    'ignore:.*load_module:DeprecationWarning'
)

ROOT = pathlib.Path(__file__).parents[2]
DOCS = [
    *(ROOT / name for name in ('README.md', 'WORKSPACE.md')),
    *sorted((ROOT / 'launch').glob('*.*')),
    *sorted((ROOT / 'configs').glob('*.py')),
]


@dataclasses.dataclass(frozen=True)
class Command:
  """Flags, without dashes; some of them may be given twice."""

  flags: dict[str, str]

  def config(self):
    """The config, through the flags of main."""
    given = [
        f'--{name}={value}'
        for name, value in self.flags.items()
        if name.partition('.')[0] == 'config'
    ]
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file(
        'config', flag_values=values, sys_argv=['main', *given]
    )
    values(['main', *given])
    return values.config

  @property
  def num_slices(self) -> int:
    """Slices of a pod."""
    f = self.flags
    if 'topology' in f and 'type' not in f:  # Plan takes them from the config.
      return int(f.get('config.mesh.dcn_data', 1))
    return int(f.get('num-slices', f.get('SLICES', 1)))

  @property
  def num_devices(self) -> int | None:
    """Devices of what stands beside the config; None if nothing does."""
    f = self.flags
    if name := f.get('accelerator', f.get('tpu-type')):
      kind, number = name.rsplit('-', 1)
      cores = 2 if kind in ('v4', 'v5p') else 1  # They are counted in cores.
      return int(number) // cores * self.num_slices
    if 'nodes' in f:
      return int(f['nodes']) * int(f['gpus-per-node'])
    if 'ACCELERATOR' in f:
      name = f['ACCELERATOR'].removeprefix('tpu-').removesuffix('-slice')
      shape = f'{name}:{f["TOPOLOGY"]}'
    elif 'topology' in f:
      shape = f'{f["type"]}:{f["topology"]}' if 'type' in f else f['topology']
    else:
      return None
    chip, sizes = topology.parse(shape)
    return math.prod(sizes) * chip.devices * self.num_slices


def commands(text: str) -> list[Command]:
  """The commands of a text that name a config."""
  text = re.sub(r'(?m)^#? *', '', text).replace('\\\n', ' ')
  one_line = lambda match: match[1].replace('\n', ' ')
  text = re.sub(r'flags=\(([^)]*)\)', one_line, text)
  # What a template is filled in with is one command.
  exports = re.findall(r'(?m)^export (.*)$', text)
  filled = ' '.join(exports).replace('CONFIG=', '--config=')
  lines = [*text.splitlines(), re.sub(r"FLAGS='([^']*)'", r'\1', filled)]
  named = [x for x in lines if '--config=configs/' in x and '....' not in x]
  flag = re.compile(r'(?:--)?([\w.-]+)=([^\s`]+)')
  bare = lambda line: ' '.join(shlex.split(line, comments=True))
  return [Command(dict(flag.findall(bare(line)))) for line in named]


def found():
  return [
      pytest.param(command, id=f'{doc.name}-{i}')
      for doc in DOCS
      for i, command in enumerate(commands(doc.read_text()))
  ]


@pytest.fixture(autouse=True)
def here(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_commands_are_found():
  number = {doc.name: len(commands(doc.read_text())) for doc in DOCS}
  assert number['README.md'] >= 2 and number['qwen2_5_7b.py'] >= 2
  named = commands((ROOT / 'launch/README.md').read_text())
  assert [c.num_devices for c in named] == [16] * 5
  assert [c.num_slices for c in named] == [1, 1, 2, 2, 2]
  assert named[0].flags['topology'] == 'v6e:4x4'
  assert named[1].flags['config.teach.traces'] == 'gs://my-bucket/s1k-1.1.jsonl'
  for name, devices in (('slurm.sbatch', 32), ('gke_job.yaml', 8)):
    (command,) = commands((ROOT / 'launch' / name).read_text())
    assert command.num_devices == devices


@pytest.mark.parametrize('command', found())
def test_a_command(command):
  config = command.config()  # Raises if a field is not there.
  if 'runs' in config:
    return  # The recipe of the sandbox.
  settings = validation.read(config.to_dict())
  num_devices = command.num_devices
  # The issue's own plan, which is to say that 8 rows do not divide.
  if num_devices is None or command.flags.get('topology') == 'v5p:4x4x4':
    return
  mesh = dict(settings.mesh)
  slices = mesh.pop('dcn_data')
  rest = math.prod(size for size in mesh.values() if size != -1)
  mesh = {k: num_devices // rest if v == -1 else v for k, v in mesh.items()}
  assert math.prod(mesh.values()) == num_devices
  assert slices == command.num_slices and mesh['data'] % slices == 0
  at_once = mesh['data'] * mesh['fsdp'] * settings.compute.rows_per_device
  assert settings.sft.batch_size % at_once == 0
  assert settings.sft.max_tokens % mesh['sequence'] == 0
  path = settings.student.path or settings.teacher.path
  name = next(n for n in presets.PRESETS if n.endswith(path.split('/')[-1]))
  model = presets.PRESETS[name].model
  assert model.embed_dim % (mesh['fsdp'] * mesh['sequence']) == 0
  assert model.num_kv_heads % mesh['tensor'] == 0


def test_the_flags_of_a_slice_are_those_of_the_script(cloud):
  text = (ROOT / 'launch/README.md').read_text()
  (line,) = re.findall(r'flags=\(([^)]*)\)', text)
  flags = shlex.split(line)
  done = cloud.run('launch/tpu_vm.sh', 'restart', *flags, '--dry-run')
  assert done.returncode == 0, done.stderr
  for verb in re.findall(r'tpu_vm.sh (\w+) "\$\{flags', text):
    done = cloud.run('launch/tpu_vm.sh', verb, *flags, '--dry-run')
    assert done.returncode == 0, done.stderr
