"""Metrics are what their names say, and intervals hold what they should."""

import math

import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.grading import scores

BOOTSTRAP = scores.Bootstrap(num_resamples=2000, seed=0)


def row(label, answers=None, boxed=None, reasons=None, **fields):
  graded = {
      'label': label,
      'output_ans': answers or [str(value) for value in label],
      'boxed_label': boxed or label,
  }
  if reasons is not None:
    graded['finish_reason'] = reasons
  return graded | fields


def values(rows):
  table = scores.score(rows, BOOTSTRAP)
  return {name: score['value'] for name, score in table.items()}


def test_each_metric():
  rows = [
      row([1, 0, 0], ['5', '6', '6'], [0, 0, 0], ['stop', 'length', 'loop']),
      row([0, 1, 1], ['1', '2', '2.0'], [0, 1, 1], ['stop', 'stop', 'length']),
      row([0, 0, 0], ['1', '2', '3'], [0, 0, 0], ['loop', 'loop', 'loop']),
      row([1, 1, 1], ['9', '9', '9'], [1, 1, 0], ['stop', 'stop', 'stop']),
  ]
  assert values(rows) == pytest.approx(
      {
          'pass@1': (1 + 2 + 0 + 3) / 12,
          'first': 2 / 4,
          # Of the three pairs in row 1, two hold the right one.
          'pass@2': (2 / 3 + 1 + 0 + 1) / 4,
          'pass@3': 3 / 4,
          'maj@3': 2 / 4,
          'boxed_only': (0 + 2 + 0 + 2) / 12,
          'truncated': 2 / 12,
          'loops': 4 / 12,
      }
  )
  table = scores.score(rows, BOOTSTRAP)
  assert all((s['n'], s['samples']) == (4, 3) for s in table.values())


def test_rows_without_output_stay_in_the_denominator():
  rows = [row([1, 1]), row([]), row([1])]
  got = values(rows)
  assert got['pass@1'] == pytest.approx((2 + 0 + 1) / 6)
  assert got['pass@2'] == got['first'] == got['maj@2'] == pytest.approx(2 / 3)
  assert 'truncated' not in got  # Not known, which is not zero.
  assert values([row([])])['pass@1'] == 0.0


@pytest.mark.parametrize(
    'n, correct, k, chance',
    [(4, 0, 2, 0.0), (4, 1, 2, 0.5), (4, 2, 2, 5 / 6), (4, 3, 2, 1.0)],
)
def test_pass_at_k_is_the_share_of_subsets_with_a_hit(n, correct, k, chance):
  assert scores.pass_at_k(n, correct, k) == pytest.approx(chance)


@pytest.mark.parametrize(
    'answers, label, won',
    [
        (['5', '5', '6'], [1, 1, 0], 1),
        (['5', '6', '6'], [1, 0, 0], 0),
        (['5', '6'], [1, 0], 1),  # A tie: the first.
        (['6', '5'], [0, 1], 0),
        ([None, None, '5'], [0, 0, 1], 1),  # No answer, no vote.
        ([None, None], [0, 0], 0),
        (['025', '6', '25'], [1, 0, 1], 1),
    ],
)
def test_majority(answers, label, won):
  assert scores.majority({'output_ans': answers, 'label': label}) == won


def test_interval_is_that_of_a_mean():
  rows = [row([int(i % 4 == 0)]) for i in range(400)]
  score = scores.score(rows, BOOTSTRAP)['pass@1']
  error = 1.96 * math.sqrt(0.25 * 0.75 / 400)
  assert score['value'] == 0.25
  assert score['low'] == pytest.approx(0.25 - error, abs=0.006)
  assert score['high'] == pytest.approx(0.25 + error, abs=0.006)
  assert score == scores.score(rows, BOOTSTRAP)['pass@1']
  other = scores.Bootstrap(num_resamples=2000, seed=1)
  assert score != scores.score(rows, other)['pass@1']


def test_samples_of_one_problem_are_not_problems():
  # Eight samples that all agree say no more than one: the interval must not
  # shrink.
  once = [row([i % 2]) for i in range(100)]
  often = [row([i % 2] * 8) for i in range(100)]
  one = scores.score(once, BOOTSTRAP)['pass@1']
  eight = scores.score(often, BOOTSTRAP)['pass@1']
  assert (one['low'], one['high']) == (eight['low'], eight['high'])


def test_interval_covers_the_truth():
  rng = np.random.default_rng(0)
  bootstrap = scores.Bootstrap(num_resamples=300, seed=0)
  hits = 0
  for _ in range(200):
    rows = [row([int(x)]) for x in rng.random(100) < 0.3]
    score = scores.score(rows, bootstrap)['pass@1']
    hits += score['low'] <= 0.3 <= score['high']
  assert 0.90 <= hits / 200 <= 0.99


def test_paired_difference():
  before = [row([int(i % 2)], id=str(i)) for i in range(200)]
  after = [row([int(i % 2 or i % 10 == 0)], id=str(i)) for i in range(200)]
  got = scores.paired(before, after[::-1], BOOTSTRAP)['pass@1']
  assert got['value'] == pytest.approx(0.1)
  assert got['n'] == 200
  # Every problem that was solved still is: 20 of 200 gained, none lost.
  error = 1.96 * math.sqrt(0.1 * 0.9 / 200)
  assert got['low'] == pytest.approx(0.1 - error, abs=0.01)
  assert got['high'] == pytest.approx(0.1 + error, abs=0.01)
  alone = scores.score(after, BOOTSTRAP)['pass@1']
  assert got['high'] - got['low'] < alone['high'] - alone['low']


def test_paired_needs_the_same_problems():
  with pytest.raises(errors.DataError, match=r'2 ids in one alone.*same file'):
    scores.paired([row([1], id='a')], [row([1], id='b')], BOOTSTRAP)


@pytest.mark.parametrize(
    'rows, match',
    [
        ([], 'no rows'),
        ([row([1], ['5', '6'])], "row 1: 1 labels, but 2 in 'output_ans'"),
        (
            [row([1], reasons=['stop']), row([1])],
            "row 2: 1 labels, but 0 in 'finish_reason'",
        ),
    ],
)
def test_mistakes(rows, match):
  with pytest.raises(errors.DataError, match=match):
    scores.score(rows, BOOTSTRAP)
