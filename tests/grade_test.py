"""The grade command: the table, the file beside, the exit codes; no JAX."""

import json
import os
import subprocess
import sys

import pytest

from palign_jax import grade

ROWS = [
    {'prompt_ori': 'a', 'answer': '025', 'output': [r'\boxed{25}', 'no idea']},
    {'prompt_ori': 'b', 'answer': 7, 'output': [r'\boxed{8}', r'\boxed{7}']},
    {'prompt_ori': 'c', 'answer': 142.0},
]


def write(path, lines):
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return str(path)


def read(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_table_and_file(tmp_path, capsys):
  path = write(tmp_path / 'x.jsonl', ROWS)
  assert grade.main([path, '--workers=1']) == 0
  lines = [
      line.replace('│', ' ').split()
      for line in capsys.readouterr().out.split('\n')
  ]
  table = {line[0]: line[1] for line in lines if len(line) > 1}
  assert table['pass@1'] == '33.3'  # 2 of 6.
  assert table['first'] == '33.3'
  assert table['pass@2'] == '66.7'
  assert table['maj@2'] == '33.3'
  assert table['boxed_only'] == '33.3'
  assert table['problems'] == '3'
  assert 'truncated' not in table  # This file does not tell.
  assert ['rows', 'without', 'output', '1'] in lines
  assert ['outputs:', 'no_answer', '1'] in lines
  graded = read(tmp_path / 'x-graded.jsonl')
  assert [row['label'] for row in graded] == [[1, 0], [0, 1], []]
  assert [row['passn'] for row in graded] == [1, 1, 0]
  assert [{key: row[key] for key in given} for row, given in zip(
      graded, ROWS, strict=True)] == ROWS  # fmt: skip


def test_a_graded_file_is_compared_with_its_own_labels(tmp_path, capsys):
  path = write(tmp_path / 'x.jsonl', [ROWS[0] | {'label': [1, 1]}])
  assert grade.main([path, '--workers=1']) == 0
  assert '1 of 2' in capsys.readouterr().out


@pytest.mark.parametrize(
    'text, message',
    [
        (None, 'no such file'),
        ('', 'the file has no rows'),
        ('{"answer": "1", "output": ["x"]}\n{"answer": ', 'line 2: no valid'),
        ('{"output": ["x"]}\n', 'row 1: no answer'),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    tmp_path, capsys, text, message
):
  good = write(tmp_path / 'good.jsonl', ROWS)
  if text is not None:
    (tmp_path / 'bad.jsonl').write_text(text)
  assert grade.main([good, str(tmp_path / 'bad.jsonl')]) == 1
  error = capsys.readouterr().err
  assert error.startswith('error: ') and error.count('\n') == 1
  assert 'bad.jsonl' in error and message in error
  assert not (tmp_path / 'good-graded.jsonl').exists()


@pytest.mark.parametrize('argv', [[], ['x', '--workers=0'], ['--nonsense']])
def test_usage(argv):
  with pytest.raises(SystemExit, match='2'):
    grade.main(argv)


def test_as_a_command_without_jax(tmp_path):
  path = write(tmp_path / 'x.jsonl', ROWS)
  code = f"""
import runpy, sys
sys.argv = ['grade', {path!r}, '--workers=1']
try:
  runpy.run_module('palign_jax.grade', run_name='__main__')
except SystemExit as e:
  assert e.code == 0, e.code
assert not any(name in sys.modules for name in ('jax', 'flax', 'torch'))
"""
  env = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  subprocess.run([sys.executable, '-c', code], check=True, env=env)
  assert len(read(tmp_path / 'x-graded.jsonl')) == 3
