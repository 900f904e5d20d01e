"""Questions are distinct, of one split, and no more than exist."""

import pytest

from palign_jax.core import errors
from palign_jax.sandbox import benchmark, world


def test_rows_are_distinct_and_of_the_split():
  rows = list(benchmark.questions(300, seed=1, split='eval', steps=(2, 5)))
  stories = [world.read_question(row['question']) for row in rows]
  assert len({row['id'] for row in rows}) == 300
  assert len({world.fingerprint(*story) for story in stories}) == 300
  assert {world.split_of(*story) for story in stories} == {'eval'}
  assert {row['steps'] for row in rows} == {2, 5}
  for row, (start, events) in zip(rows, stories, strict=True):
    for event in events:
      start = event.apply(start)
    assert row['answer'] == str(start)


def test_a_longer_file_begins_with_the_shorter_one():
  draw = lambda n: list(
      benchmark.questions(n, seed=1, split='train', steps=[3])
  )
  assert draw(20)[:5] == draw(5)


def test_more_questions_than_exist_are_refused():
  with pytest.raises(errors.ConfigError, match='900 different questions of'):
    list(benchmark.questions(900, seed=1, split='eval', steps=[1]))
