"""Systems in processes of their own."""

import os
import sys
import types

import pytest

from benchmarks import harness

_FAKE = 'tests.benchmarks.fake_system:Fake'


def _spec(name, tmp_path, **options):
  log = str(tmp_path / 'log')
  return harness.Spec(
      'case', name, _FAKE, {'name': name, 'log': log, **options}
  )


def test_systems_take_turns_in_processes_of_their_own(tmp_path):
  measured = harness.measure([_spec(x, tmp_path) for x in 'ab'], 2)
  lines = (tmp_path / 'log').read_text().splitlines()
  assert lines == ['a warm', 'b warm'] + ['a run', 'b run'] * 2
  assert len({m.facts['pid'] for m in measured} | {os.getpid()}) == 3
  for m in measured:
    assert len(m.samples) == 2
    assert min(m.samples) <= m.seconds <= max(m.samples)
    assert m.peak_bytes > 1e6


def test_a_failure_comes_with_its_traceback(tmp_path):
  with pytest.raises(RuntimeError, match='(?s)case/a failed.*what went wrong'):
    harness.measure([_spec('a', tmp_path, fails=True)], 1)


def test_fastest_is_per_row(monkeypatch):
  times = {1: 1.0, 2: 1.2, 4: 4.0, 8: 4.0}
  now, tried = [0.0], []

  def run(size):
    tried.append(size)
    now[0] += times[size]

  monkeypatch.setattr(harness.time, 'perf_counter', lambda: now[0])
  assert harness.fastest([1, 2, 4, 8], run) == 2
  assert 8 not in tried  # 4 was far slower.
  # All eight rows take 8, 4.8 and 8 seconds.
  times.update({1: 8.0, 2: 4.8, 4: 8.0, 8: 4.0})
  assert harness.fastest([1, 2, 4, 8], run, 8) == 2


def test_peak_of_this_process():
  before = harness.process_peak()
  held = bytearray(64 << 20)
  held[::4096] = b'x' * len(held[::4096])
  assert harness.process_peak() >= before > 0


@pytest.mark.parametrize('used', [True, False])
def test_the_peak_on_a_gpu_is_forgotten_too(monkeypatch, used):
  """That of the search for the best batch, which is no part of the work."""
  calls = []
  cuda = types.SimpleNamespace(
      is_initialized=lambda: used,
      reset_peak_memory_stats=lambda: calls.append('reset'),
  )
  fake = types.SimpleNamespace(cuda=cuda)
  monkeypatch.setitem(sys.modules, 'torch', fake)
  harness.forget_peak()
  assert calls == ['reset'] * used
