"""SIGTERM ends what can be left anywhere, and is noted by what cannot."""

import os
import signal

import pytest

from palign_jax.core import jsonl, stopping


@pytest.fixture
def listening():
  before = signal.getsignal(signal.SIGTERM)
  stopping.listen()
  yield lambda: os.kill(os.getpid(), signal.SIGTERM)
  signal.signal(signal.SIGTERM, before)
  stopping.forget()


def test_it_ends_with_75(listening):
  with pytest.raises(SystemExit) as e:
    listening()
  assert e.value.code == 75
  listening()  # Once is enough: what is written on the way out is written.


def test_held_back_it_is_noted(listening):
  with stopping.later():
    listening()
    assert stopping.asked()
    stopping.check()
  with pytest.raises(stopping.Stopped):
    stopping.check()


def test_a_file_is_written_whole_first(listening, tmp_path, monkeypatch):
  replace = os.replace

  def told(source, target):
    listening()
    replace(source, target)

  monkeypatch.setattr(os, 'replace', told)
  with pytest.raises(stopping.Stopped):
    jsonl.write(tmp_path / 'a.jsonl', [{'id': 1}])
  assert jsonl.read(tmp_path / 'a.jsonl') == [{'id': 1}]
