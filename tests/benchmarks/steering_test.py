"""Searches that go to a given boundary."""

import pytest

from benchmarks import steering, texts
from palign_jax.judging import search as search_lib


def _task(boundary, num=9):
  return texts.Task('t', '', '', range(1, num + 1), boundary)


@pytest.mark.parametrize('boundary', range(1, 10))
@pytest.mark.parametrize('case', ['binary', 'curve'])
@pytest.mark.parametrize('says', [True, False])
def test_a_search_ends_at_the_boundary_whatever_is_said(case, boundary, says):
  task = _task(boundary)
  judge = lambda probes: [search_lib.Verdict(says) for _ in probes]
  found = search_lib.drive({'t': steering.begin(case, task)}, judge)
  facts = steering.facts(found, [task])
  assert found['t'].cut.length == boundary
  plain = lambda probes: [
      search_lib.Verdict(probe.length >= boundary) for probe in probes
  ]
  wanted = search_lib.drive({'t': search_lib.find(case)(9)}, plain)
  assert facts['probes']['t'] == list(wanted['t'].verdicts)
  assert facts['num_probes'] == len(wanted['t'].verdicts)


def test_a_search_that_went_elsewhere_is_an_error():
  found = {'t': search_lib.Found(search_lib.Cut(3), {})}
  with pytest.raises(RuntimeError, match='cut at 3, not at 4'):
    steering.facts(found, [_task(4)])
