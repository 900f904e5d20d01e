"""The grader tells right answers from wrong, and says what each verdict is."""

import sys

import pytest

from palign_jax.core import errors
from palign_jax.grading import verify


@pytest.fixture(scope='module')
def grader():
  with verify.Grader(num_workers=1, limit_s=60) as grader:
    yield grader


def test_verdicts(grader):
  facts = [
      ('25', r'So it is $\boxed{25}$.', True, '25', 'string'),
      ('025', r'So it is $\boxed{25}$.', True, '25', 'math'),
      (142.0, r'\boxed{142}', True, '142', 'string'),
      (7, 'the answer is 7', True, '7', 'string'),
      ('She has 18.\n#### 18', 'thus $18$ eggs', True, '18', 'string'),
      ('$5$', r'\boxed{5}', True, '5', 'string'),
      (r'\frac13', r'\boxed{\frac26}', True, r'\frac{2}{6}', 'math'),
      (r'x^2-1', r'\boxed{(x-1)(x+1)}', True, '(x-1)(x+1)', 'math'),
      ('1,2', r'\boxed{2, 1}', True, '2, 1', 'math'),
      (r'\text{Evelyn}', r'\boxed{\text{Evelyn}}', True, None, 'string'),
      ('25', r'\boxed{26}', False, '26', 'math'),
      ('25', 'I do not know.', False, None, 'no_answer'),
      ('25', '', False, None, 'no_answer'),
      ('25', None, False, None, 'no_answer'),
      (None, r'\boxed{25}', False, None, 'unverifiable'),
      ('', r'\boxed{25}', False, None, 'unverifiable'),
  ]
  got = grader.grade([(gold, text) for gold, text, *_ in facts])
  for fact, verdict in zip(facts, got, strict=True):
    gold, text, correct, answer, how = fact
    assert (verdict.correct, verdict.how) == (correct, how), fact
    if answer is not None or not correct:
      assert verdict.answer == answer, fact


def test_boxed_only(grader):
  facts = [
      ('5', r'\boxed{4}, no: \boxed{5}', True),
      ('5', r'\boxed{5}, no: \boxed{4}', False),
      ('5', r'\boxed{5}. Then $5$ it is, not $4$', True),
      ('5', 'the answer is 5', False),  # `grade` credits it, this does not.
      ('5', r'the answer is 5: \boxed{5', False),
      ('5', None, False),
  ]
  got = grader.grade_boxed([(gold, text) for gold, text, _ in facts])
  assert [verdict.correct for verdict in got] == [fact[2] for fact in facts]
  assert grader.grade([('5', 'the answer is 5')])[0].correct


def test_each_item_is_counted_and_equal_ones_judged_once(grader):
  counts = []
  items = [('5', r'\boxed{5}')] * 3 + [('', 'x'), ('5', r'\boxed{6}')]
  got = grader.grade(items, advance=counts.append)
  assert [verdict.correct for verdict in got] == [True] * 3 + [False] * 2
  assert sum(counts) == 5


def test_gold_of_the_wrong_type(grader):
  with pytest.raises(errors.DataError, match='the answer is True'):
    grader.grade([(True, 'x')])


def test_tower_of_powers_costs_one_answer():
  # Sympy would compute it: in C, where no signal handler runs.
  items = [('5', r'\boxed{9^{9^{9^{9}}}}'), ('5', r'\boxed{5}')]
  with verify.Grader(num_workers=1, limit_s=3) as grader:
    lost, right = grader.grade(items)
  assert lost == verify.Verdict(False, None, 'timeout')
  assert right == verify.Verdict(True, '5', 'string')


def test_crash_costs_one_answer(tmp_path, monkeypatch):
  (tmp_path / 'fake_judge.py').write_text("""
import os
from palign_jax.grading import verify

def judge(pair):
  if 'crash' in pair[1]:
    os.abort()
  return verify.Verdict(True, pair[0], 'math')
""")
  monkeypatch.syspath_prepend(tmp_path)
  import fake_judge

  with verify.Grader(
      num_workers=2, limit_s=60, judge=fake_judge.judge
  ) as grader:
    got = grader.grade([('1', 'a'), ('2', 'crash'), ('3', 'c')])
  del sys.modules['fake_judge']
  assert [verdict.how for verdict in got] == ['math', 'crash', 'math']
  assert [verdict.answer for verdict in got] == ['$1$', None, '$3$']


def test_version():
  assert verify.version().startswith('math-verify 0.')
