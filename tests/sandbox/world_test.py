"""Stories stay in range, read back, and never cross from eval into train."""

import collections
import dataclasses
import subprocess
import sys

import pytest

from palign_jax.core import errors
from palign_jax.sandbox import world

STORY = (
    'Mia has 12 pens. First, she buys 7 more. Second, she loses 4. Third, she'
    ' keeps a third. How many pens does Mia have?'
)


def stories(split, count=60):
  return [
      world.problem(3, i, steps, split)
      for steps in range(1, 9)
      for i in range(count)
  ]


def test_a_story_is_told_and_solved():
  problem = world.Problem(
      'a',
      'Mia',
      'she',
      'pens',
      12,
      (
          world.Event('+', 7, 'buys 7 more'),
          world.Event('-', 4, 'loses 4'),
          world.Event('/', 3, 'keeps a third'),
      ),
  )
  assert problem.question == STORY
  assert problem.amounts == (12, 19, 15, 5)
  assert (problem.answer, problem.steps) == ('5', 3)


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_amounts_stay_in_range_and_divisions_are_exact(split):
  for problem in stories(split):
    assert min(problem.amounts) >= 0 and max(problem.amounts) <= 49
    for event in problem.events:
      assert 2 <= event.number <= (9 if event.sign in '+-' else 3)


def test_compute_refuses_a_division_with_a_rest():
  assert world.compute(14, '/', 2) == 7
  with pytest.raises(ValueError, match='14 / 3 is not exact'):
    world.compute(14, '/', 3)


@pytest.mark.parametrize(
    'amount, expected',
    [
        (0, {'+': (2, 3, 4, 5, 6, 7, 8, 9)}),
        (3, {'+': tuple(range(2, 10)), '-': (2, 3), '*': (2, 3), '/': (3,)}),
        (24, {'+': tuple(range(2, 10)), '-': tuple(range(2, 10)), '*': (2,),
              '/': (2, 3)}),
        (49, {'-': tuple(range(2, 10))}),
    ],
)  # fmt: skip
def test_choices_are_what_keeps_the_range(amount, expected):
  assert world.choices(amount) == expected


def test_every_operation_is_frequent():
  signs = collections.Counter(
      e.sign for problem in stories('train') for e in problem.events
  )
  assert min(signs.values()) > sum(signs.values()) / 8


@pytest.mark.parametrize('split', ['train', 'eval'])
def test_questions_read_back_and_keep_their_split(split):
  for problem in stories(split):
    start, events = world.read_question(problem.question)
    assert (start, events) == (problem.start, problem.events)
    assert world.split_of(start, events) == split


def test_no_fingerprint_is_in_both_splits():
  marks = {
      split: {world.fingerprint(p.start, p.events) for p in stories(split)}
      for split in world.SPLITS
  }
  assert not marks['train'] & marks['eval']


def test_names_and_words_do_not_bear_on_the_fingerprint():
  events = world.read_question(STORY)[1]
  other = tuple(dataclasses.replace(e, words='?') for e in events)
  assert world.fingerprint(12, events) == world.fingerprint(12, other)
  assert world.fingerprint(12, events) != world.fingerprint(13, events)
  assert world.fingerprint(12, events) != world.fingerprint(12, events[::-1])


def test_the_same_arguments_give_the_same_problem_in_another_process():
  command = (
      'from palign_jax.sandbox import world;'
      "print(world.problem(5, 6, 4, 'eval').question, end='')"
  )
  there = subprocess.run(
      [sys.executable, '-c', command],
      capture_output=True, text=True, check=True,
  ).stdout  # fmt: skip
  assert there == world.problem(5, 6, 4, 'eval').question
  assert there != world.problem(6, 6, 4, 'eval').question


@pytest.mark.parametrize(
    'steps, split, message',
    [
        (0, 'train', 'a story of 0 steps; it has 1 to 8'),
        (9, 'train', 'a story of 9 steps; it has 1 to 8'),
        (2, 'test', "no split 'test'; known: train, eval"),
    ],
)
def test_bad_arguments_are_named(steps, split, message):
  with pytest.raises(errors.ConfigError, match=message):
    world.problem(0, 0, steps, split)


def test_what_is_no_story_is_named():
  with pytest.raises(errors.DataError, match='not a story of the sandbox'):
    world.read_question('What is 2 + 2?')
  with pytest.raises(errors.DataError, match="'eats 4': no wording"):
    world.read_question('Mia has 9 pens. First, she eats 4. How many?')
