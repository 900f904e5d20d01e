"""Bad input gets one line that helps, and nothing already written is lost."""

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys

from etils import epath
import pytest

from palign_jax import main
from palign_jax.core import errors, jsonl, peers
from palign_jax.stages import teach
from tests import fakes

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
    'traces': 'traces.jsonl',
    'prefixes': 'run/truncate/prefixes.jsonl',
    'completions': 'run/align/completions.jsonl',
    'train': 'run/assemble/train.jsonl',
    'samples': 'run/sample/before/sums.jsonl',
    'benchmark': 'benchmark.jsonl',
}
STAGE = {
    'traces': 'teach',
    'prefixes': 'align',
    'completions': 'assemble',
    'train': 'sft',
    'samples': 'grade',
    'benchmark': 'sample',
}
GOOD = {
    'prefixes': {'id': 1, 'question': 'Q?', 'sufficient_reasoning': 'So.'},
    'completions': {
        'id': 1,
        'question': 'Q?',
        'sufficient_reasoning': 'So.',
        'output': '7',
    },
    'train': {'id': 1, 'input': 'Q?', 'output': '7'},
    'samples': {'id': 1, 'answer': '7', 'output': ['7']},
    'benchmark': {'id': 1, 'problem': 'Q?', 'answer': '7'},
    'traces': fakes.traces(1)[0],
}
MUST = {
    'traces': ['question', 'answer', 'Long-CoT'],
    'prefixes': ['question', 'sufficient_reasoning'],
    'completions': ['question', 'sufficient_reasoning', 'output'],
    'train': ['input', 'output'],
    'samples': ['answer'],
    'benchmark': ['problem', 'answer'],
}


@pytest.fixture(scope='module')
def student(tmp_path_factory):
  return fakes.model_folder(tmp_path_factory.mktemp('model') / 'student')


@pytest.fixture
def config(tmp_path, student):
  return fakes.config(tmp_path, student)


def snapshot(folder):
  """Bytes of every file but the two that record each start."""
  ours = ('config.json', 'manifest.json')
  return {
      str(p.relative_to(folder)): p.read_bytes()
      for p in pathlib.Path(folder).rglob('*')
      if p.is_file() and (p.parent.name != 'run' or p.name not in ours)
  }


def refused(config, folder, stages, kind, message, workdir='run'):
  """Checks for one line that matches, and that no file has changed."""
  before = snapshot(folder)
  with pytest.raises(kind, match=message) as e:
    main.run(config, epath.Path(folder) / workdir, stages)
  assert '\n' not in str(e.value)
  assert snapshot(folder) == before


def put(folder, which, text):
  path = folder / FILES[which]
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  if which == 'samples':  # Grade looks at both models.
    shutil.copytree(path.parent, path.parent.with_name('after'))


@pytest.mark.parametrize('which', FILES)
def test_a_missing_file(config, tmp_path, which):
  (tmp_path / FILES[which]).unlink(missing_ok=True)
  name = pathlib.Path(FILES[which]).name
  message = f'{name}: (no such file|not there; run the stage)'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize('which', FILES)
def test_an_empty_file(config, tmp_path, which):
  put(tmp_path, which, '')
  if which == 'completions':  # All traces were dropped, as it may be.
    main.run(config, tmp_path / 'run', ['assemble'])
    return
  message = r'\.jsonl: (the file has no rows|nothing to train on)'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize('which', FILES)
def test_broken_json_on_a_line(config, tmp_path, which):
  put(tmp_path, which, json.dumps(GOOD[which]) + '\n\n{"id": 2,\n')
  message = r'\.jsonl, line 3: no valid JSON .*; each line must be one object'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize('which', FILES)
def test_a_line_that_is_no_object(config, tmp_path, which):
  put(tmp_path, which, json.dumps(GOOD[which]) + '\n[1]\n')
  message = r'\.jsonl, line 2: a list; each line must be one object'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


CASES = [(which, field) for which, fields in MUST.items() for field in fields]


@pytest.mark.parametrize('which, field', CASES)
def test_a_missing_field(config, tmp_path, which, field):
  row = {k: v for k, v in GOOD[which].items() if k != field}
  rows = [GOOD[which] | {'id': 5}, row]
  put(tmp_path, which, ''.join(map(jsonl.dumps, rows)).replace('}{', '}\n{'))
  what = {'problem': 'question'}.get(field, f"'?{field}'?")
  message = rf'\.jsonl, row 2: no {what}'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize('which, field', CASES)
def test_a_field_of_the_wrong_type(config, tmp_path, which, field):
  rows = [GOOD[which] | {'id': 5}, GOOD[which] | {field: ['x']}]
  put(tmp_path, which, ''.join(jsonl.dumps(row) + '\n' for row in rows))
  message = r"\.jsonl, row 2.* \['x'\]"
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize(
    'which', ['traces', 'prefixes', 'samples', 'benchmark']
)
def test_a_duplicate_id(config, tmp_path, which):
  rows = [GOOD[which], GOOD[which] | {'id': 'x'}, GOOD[which]]
  put(tmp_path, which, ''.join(jsonl.dumps(row) + '\n' for row in rows))
  message = r'\.jsonl, row 3: the .*is (that of row 1 too|there twice)'
  refused(config, tmp_path, [STAGE[which]], errors.DataError, message)


@pytest.mark.parametrize('answer', [None, '', ' '])
def test_a_benchmark_without_answers_stops_before_the_first_stage(
    config, tmp_path, answer
):
  row = {'problem': 'Q?', 'answer': answer}
  put(tmp_path, 'benchmark', json.dumps(row) + '\n')
  message = r'benchmark.jsonl, row 1: no answer in .*a benchmark needs one'
  refused(config, tmp_path, ['teach', 'sample'], errors.DataError, message)


def test_no_benchmark_at_all(config, tmp_path):
  config.benchmarks = {}
  message = 'config.benchmarks is empty; give names'
  refused(config, tmp_path, ['sample'], errors.ConfigError, message)


def test_neither_traces_nor_questions(config, tmp_path):
  config.teach.traces = None
  message = 'config.teach: neither traces nor questions are set'
  refused(config, tmp_path, ['teach'], errors.ConfigError, message)
  config.teach.questions = str(tmp_path / 'benchmark.jsonl')
  message = 'config.teacher.path is not set; name a model folder'
  refused(config, tmp_path, ['teach'], errors.ConfigError, message)


def test_no_student(config, tmp_path):
  config.student.path = None
  message = 'config.student.path is not set; name a model folder'
  refused(config, tmp_path, ['truncate'], errors.ConfigError, message)


@pytest.mark.parametrize(
    'name, text, message',
    [
        ('', None, 'no such folder; give a folder with config.json'),
        ('config.json', None, 'config.json: no such file'),
        ('config.json', '{', 'config.json'),
        ('model.safetensors', None, 'safetensors'),
        ('model.safetensors', 'x', 'safetensors'),
        ('tokenizer.json', None, 'no tokenizer there .* copy the tokenizer'),
        ('tokenizer.json', '{', 'tokenizer.json cannot be read as a tokenizer'),
    ],
)
def test_a_model_folder_that_lacks_something(
    config, tmp_path, name, text, message
):
  folder = tmp_path / 'model'
  if name:
    shutil.copytree(config.student.path, folder)
    (folder / name).unlink()
  if text is not None:
    (folder / name).write_text(text)
  config.student.path = str(folder)
  stages = ['teach', 'truncate', 'sample']
  refused(config, tmp_path, stages, errors.CheckpointError, message)


def test_a_tokenizer_with_ids_beyond_the_model_s(config, tmp_path):
  folder = fakes.model_folder(tmp_path / 'small', vocab_size=300)
  config.student.path = str(folder)
  message = 'the tokenizer has 320 ids and the model 300'
  refused(config, tmp_path, ['truncate'], errors.CheckpointError, message)


def test_a_tokenizer_without_chat_template(config, tmp_path, student):
  folder = tmp_path / 'plain'
  shutil.copytree(student, folder)
  fakes.tokenizer_folder(folder, template=None)
  config.student.path = str(folder)
  stages = ['teach', 'truncate', 'align', 'sft']
  message = 'chat.template'
  refused(config, tmp_path, stages, errors.CheckpointError, message)


@pytest.mark.parametrize(
    'section, field, value, message',
    [
        ('truncate', 'search', 'bisect', "truncate.search: no search 'bisect'"),
        ('truncate', 'splitter', 'words', 'words'),
        ('prompts', 'judge', 'nope', "judge prompt 'nope': no such prompt"),
        ('prompts', 'align', 'nope', "align prompt 'nope': no such prompt"),
        ('prompts', 'answer', 'nope', "answer prompt 'nope': no such prompt"),
        ('teach', 'fields', 'nope', "config.teach.fields: no preset 'nope'"),
        ('mesh', 'data', 3, r'config.mesh asks for .*there are 8'),
        ('mesh', 'tensor', 16, r'config.mesh asks for .*there are 8'),
        ('mesh', 'dcn_data', 2, 'config.mesh.dcn_data is 2, .* set dcn_data'),
        (
            'sft',
            'batch_size',
            12,
            'config.sft.batch_size is 12, .* take a multiple of 8',
        ),
        (
            'sft',
            'max_tokens',
            4096,
            'max_tokens is 4096 and the student has 512',
        ),
        (
            'compute',
            'attention',
            'cudnn',
            "compute.attention is 'cudnn': it needs NVIDIA .*; take 'auto' or",
        ),
        ('sft', 'splitter', 'words', 'words'),
        ('sft', 'nope', 1, 'config.sft.nope: Sft has no such field'),
        ('align', 'mode', 'chat', "config.align.mode is 'chat'; it can be"),
    ],
)
def test_a_config_that_cannot_be(
    config, tmp_path, section, field, value, message
):
  config.unlock()
  config[section][field] = value
  refused(config, tmp_path, main.STAGES, errors.ConfigError, message)


def test_rows_whose_tokens_do_not_split(config, tmp_path):
  config.mesh.sequence = 2
  config.sft.max_tokens = 255
  message = 'config.sft.max_tokens is 255 and config.mesh.sequence 2; make'
  refused(config, tmp_path, main.STAGES, errors.ConfigError, message)


@pytest.mark.parametrize(
    'ways, what', [(4, '2 key-value heads'), (8, '4 heads')]
)
def test_heads_that_do_not_split(config, tmp_path, ways, what):
  config.mesh.update(data=-1, tensor=ways)
  message = (
      f'config.mesh.tensor is {ways} and .* has {what}, which do not split so;'
      ' take a divisor of 2'
  )
  for stages in (['truncate'], ['align'], ['sft'], ['sample'], main.STAGES):
    refused(config, tmp_path, stages, errors.ConfigError, message)


def test_channels_that_do_not_split(config, tmp_path):
  config.mesh.update(data=1, fsdp=2, sequence=4)
  config.student.path = str(fakes.model_folder(tmp_path / 'odd', embed_dim=36))
  message = r'config.mesh.fsdp \* sequence is 8 and .* has 36 channels'
  refused(config, tmp_path, main.STAGES, errors.ConfigError, message)


def test_rows_that_do_not_split_over_the_devices(config, tmp_path):
  jsonl.write(tmp_path / FILES['prefixes'], [GOOD['prefixes']])
  config.compute.num_rows = 12
  message = r'compute\.num_rows is 12, which does not split over 8'
  refused(config, tmp_path, ['align'], errors.ConfigError, message)


def test_unknown_stages():
  assert main.chosen(['grade', 'teach']) == ['teach', 'grade']
  with pytest.raises(
      errors.ConfigError, match="no stage 'judge'; the stages a"
  ):
    main.chosen(['teach', 'judge'])


def test_stages_out_of_order_say_what_comes_first(config, tmp_path):
  for stage, first in (
      *(('truncate', 'teach'), ('align', 'truncate'), ('assemble', 'align')),
      *(('sft', 'assemble'), ('sample', 'sft'), ('grade', 'sample')),
  ):
    message = f"not there; run the stage '{first}' first"
    refused(config, tmp_path, [stage], errors.DataError, message)


def test_the_workdir_of_another_config(config, tmp_path, student):
  main.run(config, tmp_path / 'run', ['teach'])
  config.sft.rank = 4  # Not begun.
  config.compute.part_rows = 1  # Free.
  main.run(config, tmp_path / 'run', ['teach'])
  config.teach.limit, config.seed = 2, 1
  message = r'another seed \(there 0, here 1\), teach.limit \(there 0, here 2\)'
  refused(config, tmp_path, ['teach'], errors.ConfigError, message)


def test_a_moved_model_is_the_same_and_a_changed_one_is_not(
    config, tmp_path, student
):
  main.run(config, tmp_path / 'run', ['teach'])
  jsonl.write(tmp_path / 'run/sft/metrics.jsonl', [{'step': 1}])  # Begun.
  moved = tmp_path / 'moved'
  shutil.copytree(student, moved)
  config.student.path = str(moved)
  main.run(config, tmp_path / 'run', ['teach'])
  fakes.model_folder(moved, seed=1)
  message = 'another student.path .what is at .*moved. has changed'
  refused(config, tmp_path, ['teach'], errors.ConfigError, message)


def test_inputs_that_changed_since(config, tmp_path):
  main.run(config, tmp_path / 'run', ['teach'])
  jsonl.write(tmp_path / 'traces.jsonl', fakes.traces(2))
  message = r'another teach.traces \(what is at .* has changed\)'
  refused(config, tmp_path, ['teach'], errors.ConfigError, message)


def test_a_workdir_that_cannot_be_written(config, tmp_path):
  (tmp_path / 'taken').write_text('mine')
  message = '--workdir=.*taken.* cannot be written'
  stages, kind = ['teach'], errors.ConfigError
  refused(config, tmp_path, stages, kind, message, workdir='taken')
  refused(config, tmp_path, stages, kind, message, workdir='taken/below')
  message = '--workdir=/proc/palign cannot be written'
  refused(config, tmp_path, stages, kind, message, workdir='/proc/palign')


@pytest.mark.parametrize('place', ['traces.jsonl', 'summary.json'])
def test_a_full_disk_loses_nothing(config, tmp_path, monkeypatch, place):
  replace = os.replace

  def full(source, target):
    if str(target).endswith(place):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace(source, target)

  monkeypatch.setattr(os, 'replace', full)
  with pytest.raises(errors.DataError, match='cannot be written .No space'):
    main.run(config, tmp_path / 'run', ['teach'])
  monkeypatch.undo()
  assert not list((tmp_path / 'run').rglob('.*.tmp'))
  main.run(config, tmp_path / 'run', ['teach'])
  assert len(jsonl.read(tmp_path / 'run/teach/traces.jsonl')) == 5


class Second(peers.Alone):
  """The second of two processes; the first has opened another folder."""

  index, count = 1, 2

  def gather(self, value, at):
    return ['0123456789abcdef', value]


def test_hosts_that_see_different_folders(config, tmp_path):
  before = snapshot(tmp_path)
  message = '2 processes need one that all of them share'
  with pytest.raises(errors.ConfigError, match=message) as e:
    main.run(config, tmp_path / 'run', ['teach'], Second())
  assert '\n' not in str(e.value)
  assert snapshot(tmp_path) == before


def test_parts_stay_until_all_hosts_have_read_them(
    config, tmp_path, monkeypatch
):
  part = tmp_path / 'run/teach/rows.jsonl.parts/000-00000.jsonl'
  seen = {}

  class First(peers.Alone):

    def gather(self, value, at):
      seen[at] = part.exists()
      return [value]

  fake = lambda context: jsonl.write(part, [{}]) or {}
  monkeypatch.setattr(teach, 'run', fake)
  main.run(config, tmp_path / 'run', ['teach'], First())
  assert seen['ran teach'] and not seen['finished teach']


def program(*flags, max_kib='unlimited'):
  """Runs main as people do; returns its exit status and lines of stderr."""
  shell = f'ulimit -f {max_kib}; exec "$0" -m palign_jax.main "$@"'
  done = subprocess.run(
      ['bash', '-c', shell, sys.executable, *flags],
      cwd=ROOT,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'TF_CPP_MIN_LOG_LEVEL': '3'},
      capture_output=True,
      text=True,
      timeout=300,
  )
  return done.returncode, done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    'flags, line',
    [
        (
            ['--config=configs/quickstart.py', '--config.sft.nope=1'],
            "Error: --config.sft.nope=1: the config has no field 'nope'; the"
            ' config file and configs/common.py list the fields.',
        ),
        (
            [
                '--config=configs/quickstart.py',
                '--config.truncate.serch=x',
            ],
            "Error: --config.truncate.serch=x: the config has no field 'serch';"
            ' the config file and configs/common.py list the fields. Did you'
            ' mean "search" instead of "serch"?',
        ),
        (
            ['--config=configs/nofile.py'],
            "Error: [Errno 2] No such file or directory: 'configs/nofile.py'",
        ),
    ],
)
def test_wrong_flags_are_one_line(flags, line):
  assert program(*flags) == (1, [line])


@pytest.mark.slow
def test_a_full_disk_as_a_user_meets_it(config, tmp_path):
  """A bound on the size of files stands for the disk."""
  lines = [
      'from configs import common',
      'def get_config():',
      '  config = common.base()',
      f'  config.teach.traces = {config.teach.traces!r}',
      '  return config',
  ]
  (tmp_path / 'tiny.py').write_text('\n'.join(lines))
  flags = (
      f'--config={tmp_path}/tiny.py',
      f'--workdir={tmp_path}/run',
      '--stages=teach',
  )
  traces = tmp_path / 'traces.jsonl'
  jsonl.write(traces, fakes.traces(40))
  status, lines = program(*flags, max_kib=4)
  assert traces.stat().st_size > 4096
  assert status == 1 and 'Traceback' not in '\n'.join(lines)
  assert lines[-1] == (
      f'Error: {tmp_path}/run/teach/traces.jsonl: cannot be written (File too'
      ' large); nothing in its place was changed.'
  )
  assert not list((tmp_path / 'run/teach').iterdir())
  assert program(*flags)[0] == 0
  assert len(jsonl.read(tmp_path / 'run/teach/traces.jsonl')) == 40
