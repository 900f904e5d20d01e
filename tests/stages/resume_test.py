"""A run that was killed and resumed has the files of one that was not."""

import shutil
import signal

import pytest

from benchmarks import kill_resume
from tests.stages import victim

# Each life is killed at the n-th file it names: before, after, or a little
# later, in the middle of what comes then.  The first two name config and
# manifest.
LIVES = [
    (1, 0.0),
    (3, -1.0),  # teach
    (4, 0.0),
    (5, -1.0),  # truncate
    (6, 0.02),
    (7, 0.0),  # align
    (9, -1.0),
    (7, 0.05),
    (6, 0.3),
    (6, -1.0),
    (4, 0.02),  # sft, while it saves
    (5, 0.1),
    (6, 0.0),
    (6, -1.0),
    (7, 0.05),
    (8, 0.0),
    (8, -1.0),
]


@pytest.mark.slow
def test_killed_and_resumed_is_never_stopped(whole, tmp_path, compiled):
  run, stages, lives = tmp_path / 'run', [], iter(LIVES)
  start = lambda kill: victim.start(whole.config, run, compiled, kill)
  while (status := start(next(lives, None))) == -signal.SIGKILL:
    stages.append(kill_resume.stage_of(run))
  assert status == 0
  assert kill_resume.differences(whole.path, run) == []
  assert len(set(stages)) >= 5, stages
  assert not list(run.rglob('.*.tmp')) and not list(run.rglob('*.parts'))


def test_differences_are_found(whole, tmp_path):
  """The comparison sees a row that is lost or changed, and a file."""
  copy = tmp_path / 'copy'
  shutil.copytree(whole.path, copy)
  assert kill_resume.differences(whole.path, copy) == []
  rows = (copy / 'align/completions.jsonl').read_text().splitlines()
  (copy / 'align/completions.jsonl').write_text('\n'.join(rows[::-1]) + '\n')
  assert kill_resume.differences(whole.path, copy) == []  # Only the order.
  (copy / 'align/completions.jsonl').write_text('\n'.join(rows[1:]) + '\n')
  (copy / 'teach/.traces.jsonl.1.tmp').write_text('')
  assert kill_resume.differences(whole.path, copy) == [
      'only in one: teach/.traces.jsonl.1.tmp',
      'differs: align/completions.jsonl',
  ]
