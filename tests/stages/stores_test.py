"""A run on an object store, which can neither append nor rename."""

import pytest

from benchmarks import kill_resume
from tests.stages import victim

# At which put lives end: config and manifest are the first two of each.
CRASHES = (4, 3, 5, 6, 8, 5, 7, 9)


@pytest.mark.slow
def test_a_run_on_a_store_is_one_on_disk(whole, tmp_path, compiled):
  run = tmp_path / 'run'
  assert victim.start_on_store(whole.config, run, compiled, CRASHES) == 0
  assert kill_resume.differences(whole.path, run) == []
  assert not list(run.rglob('*.parts'))
