"""Traces are right, 15 to 60 sentences long, and their detours are mended."""

import dataclasses
import re

import pytest

from palign_jax.sandbox import teacher, world

CALM = teacher.TeacherConfig(
    checks=0.0,
    max_checks=0,
    early_rate=0.0,
    slip_rate=0.0,
    max_detours=0,
    max_recap_steps=2,
)
PROBLEM = world.Problem(
    'a',
    'Mia',
    'she',
    'pens',
    19,
    (world.Event('-', 4, 'loses 4'), world.Event('*', 2, 'doubles them')),
)
EQUATION = re.compile(r'(\d+) ([-+*/]) (\d+) = (\d+)')


def pairs(count, config=teacher.DEFAULT):
  for steps in range(2, 9):
    for i in range(count):
      problem = world.problem(i, i, steps, 'train')
      yield problem, teacher.trace(problem, i, config)


def test_the_calmest_trace_word_for_word():
  assert teacher.trace(PROBLEM, 0, CALM) == (
      'Let me follow the story. It asks how many pens Mia has. There are 2'
      ' events. She starts with 19. First, she loses 4. So 19 - 4 = 15. Now'
      ' she has 15. Second, she doubles them. So 15 * 2 = 30. Now she has 30.'
      ' No event is left. Let me recap. It went 19, 15, 30. She ends with 30'
      ' pens. The answer is \\boxed{30}.'
  )


def test_detours_word_for_word():
  early = dataclasses.replace(CALM, early_rate=1.0, max_detours=1)
  assert (
      ' Second, wait, that is too early. First comes next. First, she loses 4.'
      in teacher.trace(PROBLEM, 0, early)
  )
  wrong = dataclasses.replace(CALM, slip_rate=1.0, max_detours=1)
  assert re.search(
      r'So 19 - 4 = (12|13|14|16|17|18)\. Check: \1 \+ 4 = \d+, not 19\. That'
      r' is wrong\. So 19 - 4 = 15\. Now she has 15\.',
      teacher.trace(PROBLEM, 0, wrong),
  )
  checked = dataclasses.replace(CALM, checks=9.0, max_checks=9)
  assert (
      'So 15 * 2 = 30. Check: 30 / 2 = 15, good. Now she has 30.'
      in teacher.trace(PROBLEM, 0, checked)
  )


def test_every_trace_has_15_to_60_sentences_and_the_right_answer():
  for problem, text in pairs(720):
    assert 15 <= len(teacher.sentence_ends(text)) <= 60
    assert text.endswith(f' The answer is \\boxed{{{problem.answer}}}.')
    assert text.count('boxed') == 1


def test_a_calm_teacher_still_writes_15_sentences():
  assert min(len(teacher.sentence_ends(t)) for _, t in pairs(5, CALM)) == 15


def test_only_results_that_a_check_condemns_are_wrong():
  num_wrong = 0
  wild = teacher.TeacherConfig(early_rate=0.3, slip_rate=0.5, max_detours=9)
  for _, text in pairs(100, wild):
    sentences = text.split('. ')
    for i, sentence in enumerate(sentences):
      if not (found := EQUATION.search(sentence)):
        continue
      left, sign, right, result = found.groups()
      assert 0 <= int(left) <= 49 and 0 <= int(result) <= 49
      is_right = world.compute(int(left), sign, int(right)) == int(result)
      condemned = sentences[i + 1 : i + 3]
      if is_right:
        assert 'That is wrong' not in condemned or ', not ' in sentence
      else:
        num_wrong += 1
        assert condemned[0].endswith(f', not {left}')
        assert condemned[1] == 'That is wrong'
        assert sentences[i + 3].startswith(f'So {left} {sign} {right} = ')
  assert num_wrong > 500


@pytest.mark.parametrize(
    'sign, number, before, expected',
    [
        ('-', 4, 19, [12, 13, 14, 16, 17, 18]),
        ('-', 2, 2, [1, 2, 3]),
        ('+', 2, 46, [45, 46, 47, 49]),
        ('*', 2, 13, [24, 28]),
        ('*', 3, 5, [12, 18]),
        ('/', 3, 42, [11, 12, 13, 15, 16]),
    ],
)
def test_slips_are_near_misses_whose_check_stays_in_range(
    sign, number, before, expected
):
  assert teacher.slips(world.Event(sign, number, ''), before) == expected


def test_progress_counts_right_equations_in_order():
  text = (
      'She starts with 19. So 15 * 2 = 30. So 19 - 4 = 16. That is wrong. So'
      ' 19 - 4 = 15. Now she has 15. So 15 * 2 = 30. The answer is \\boxed{30}.'
  )
  assert teacher.progress(PROBLEM, text) == [0, 0, 0, 0, 1, 1, 2, 2]
  assert teacher.progress(PROBLEM, '') == []


def test_progress_of_every_trace_ends_with_all_done():
  for problem, text in pairs(50):
    counts = teacher.progress(problem, text)
    assert counts == sorted(counts) and counts[0] == 0
    assert counts[-1] == problem.steps


def test_traces_differ_by_seed_and_are_the_same_by_the_same_seed():
  problem = world.problem(0, 0, 8, 'train')
  texts = [teacher.trace(problem, seed) for seed in range(20)]
  assert texts == [teacher.trace(problem, seed) for seed in range(20)]
  assert len(set(texts)) > 10
