"""Hosts that divide the rows write what one process writes."""

import functools
import json
import signal

import jax
import numpy as np
import pytest

from benchmarks import kill_resume
from palign_jax.checkpoints import hf_import
from palign_jax.core import jsonl, stopping
from tests.stages import victim

# Where the steps of a batch are added up over two devices, not in one.
_ROUNDED = ('sft/export/', 'sft/adapter/', 'sft/metrics', 'sft/summary')


def same(one, two):
  """Checks that two runs have the same files, training within rounding."""
  found = kill_resume.differences(one, two)
  assert not [x for x in found if not x.startswith(_rounded())], found
  rows = [jsonl.read(run / 'sft/metrics.jsonl') for run in (one, two)]
  losses = [[row['loss'] for row in each] for each in rows]
  np.testing.assert_allclose(*losses, rtol=1e-4)
  exports = [
      hf_import.load(run / 'sft/export', dtype=np.float32).params
      for run in (one, two)
  ]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, *exports)


def _rounded():
  return tuple(f'differs: {name}' for name in _ROUNDED)


def no_row_twice(run):
  """Checks the keys of what is merged from parts."""
  for file, key in (
      ('truncate/prefixes.jsonl', lambda r: r['id']),
      ('align/completions.jsonl', lambda r: (r['id'], r['sample'])),
      ('sample/before/sums.jsonl', lambda r: r['id']),
  ):
    names = list(map(key, jsonl.read(run / file)))
    assert len(names) == len(set(names))


@pytest.mark.slow
def test_two_hosts_are_as_one(whole, tmp_path, compiled):
  run = tmp_path / 'run'
  assert victim.start_hosts(whole.config, run, compiled, 2) == [0, 0]
  same(whole.path, run)
  no_row_twice(run)
  assert json.loads((run / 'manifest.json').read_text())['hosts'] == 2


@pytest.mark.slow
def test_hosts_that_are_killed_and_stopped(whole, tmp_path, compiled):
  """Each life has another end, and the last another number of hosts."""
  run = tmp_path / 'run'
  start = lambda count, stop=None: victim.start_hosts(
      whole.config, run, compiled, count, stop
  )
  # Host 1 dies before its first part has a name.
  assert start(2, (1, 1, signal.SIGKILL))[1] == -signal.SIGKILL
  assert kill_resume.stage_of(run) == 'truncate'
  # Host 0 is told to end; config, manifest, what is left of truncate's parts,
  # its file and its summary come first.
  stopped = start(2, (0, 7, signal.SIGTERM))
  assert stopped == [stopping.EXIT_CODE] * 2
  assert kill_resume.stage_of(run) == 'align'
  assert list(run.rglob('*.parts'))
  assert start(1) == [0]
  same(whole.path, run)
  no_row_twice(run)
  changes = json.loads((run / 'manifest.json').read_text())['changes']
  assert [c['changed']['hosts'] for c in changes] == [[2, 1]]
  assert not list(run.rglob('*.parts')) and not list(run.rglob('.*.tmp'))
