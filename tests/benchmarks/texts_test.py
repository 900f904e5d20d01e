"""Traces cut to a size."""

import pytest

from benchmarks import judge, texts
from palign_jax.core import errors
from palign_jax.text import tokenizer as tokenizer_lib


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizer_lib.load(judge.SANDBOX)


def _tasks(tokenizer, source=None, **sizes):
  sizes = {'num_traces': 8, 'num_tokens': 300, 'num_sentences': 10} | sizes
  return texts.tasks(source or texts.sandbox(), tokenizer, **sizes)


def test_traces_have_the_size_that_was_asked_for(tokenizer):
  for task in _tasks(tokenizer):
    assert 290 <= len(tokenizer.encode(task.text)) <= 310
    assert len(task.ends) == 10
    assert list(task.ends) == sorted(set(task.ends))
    assert task.ends[-1] <= len(task.text)
    assert all(not task.text[end - 1].isspace() for end in task.ends)


def test_more_cuts_than_sentences_are_cuts_after_words(tokenizer):
  (task,) = _tasks(tokenizer, num_traces=1, num_sentences=100)
  assert len(task.ends) == 100
  assert all(
      task.text[end : end + 1].isspace() or end == len(task.text)
      for end in task.ends
  )


def test_boundaries_are_uniform_and_the_same_each_time(tokenizer):
  tasks = _tasks(tokenizer, num_traces=10)
  assert sorted(task.boundary for task in tasks) == list(range(1, 11))
  assert tasks == _tasks(tokenizer, num_traces=10)


def test_texts_that_run_out(tokenizer):
  with pytest.raises(errors.DataError, match='lower --num_traces'):
    _tasks(tokenizer, [('What?', 'Three words here. ' * 60)])
