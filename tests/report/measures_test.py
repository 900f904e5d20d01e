"""The report's counts add up and its intervals are Wilson's."""

import numpy as np
import pytest

from palign_jax.report import inputs, measures


def run(**files):
  names = ('traces', 'prefixes', 'completions', 'train', 'rejected', 'metrics')
  return inputs.Run(
      name='run',
      config={},
      manifest=None,
      summaries={},
      scores=None,
      answers={},
      **{name: files.get(name) for name in names},
  )


def test_every_question_lost_has_one_reason():
  got = measures.funnel(
      run(
          traces=[{'id': i} for i in 'abcdef'],
          prefixes=[
              {'id': 'a', 'status': 'dropped', 'reason': 'too_long'},
              *({'id': i, 'status': 'kept'} for i in 'bcdef'),
          ],
          completions=[{'id': i} for i in 'bbccdde'],  # f is lost silently.
          train=[
              {'id': 'b', 'verdict': 'correct'},
              {'id': 'd', 'verdict': 'unverifiable'},
          ],
          rejected=[
              {'id': 'a', 'reason': 'too_long'},
              {'id': 'b', 'reason': 'wrong'},
              {'id': 'c', 'reason': 'wrong'},
              {'id': 'c', 'reason': 'length'},
              {'id': 'e', 'reason': 'loop'},
          ],
      )
  )
  level = measures.Level
  assert got == [
      level('traces', 6, {}),
      level('prefix kept', 5, {'too_long': 1}),
      level('continued', 4, {'not accounted for': 1}),
      level('correct', 1, {'length': 1, 'loop': 1, 'unverifiable': 1}),
      level('in the training set', 2, {}, gained=1),
  ]


def test_a_level_that_was_not_run_is_left_out():
  got = measures.funnel(run(prefixes=[{'id': 1}, {'id': 2}], train=[]))
  assert [(level.name, level.left) for level in got] == [
      ('prefix kept', 2),
      ('correct', 0),
      ('in the training set', 0),
  ]


@pytest.mark.parametrize(
    'share, n, want',
    [
        (0.0, 10, (0.0, 0.2775)),
        (0.5, 100, (0.4038, 0.5962)),
        (1.0, 10, (0.7225, 1.0)),
    ],
)
def test_wilson(share, n, want):
  np.testing.assert_allclose(measures.wilson(share, n), want, atol=5e-5)


def answer(id_, labels, difficulty):
  return inputs.Answer(
      id=id_,
      question='',
      gold='',
      first='',
      lengths=(),
      labels=labels,
      difficulty=difficulty,
      difficulty_name='steps',
  )


def test_accuracy_by_difficulty_counts_problems_without_samples_as_wrong():
  got = measures.by_difficulty(
      {
          'before': [answer('a', (1, 0), 2.0), answer('b', (), 2.0)],
          'after': [answer('a', (1, 1), 3.0), answer('b', None, 2.0)],
      }
  )
  two, none = got['before']
  assert (two.label, two.share, two.n, none) == ('2', 0.25, 2, None)
  none, three = got['after']
  assert (three.label, three.share, three.n, none) == ('3', 1.0, 1, None)


def test_many_difficulties_are_joined():
  answers = [answer(str(i), (1,), float(i)) for i in range(100)]
  (bins,) = measures.by_difficulty({'after': answers}, max_bins=4).values()
  assert [(b.label, b.n) for b in bins] == [
      ('0–23', 24),
      ('24–48', 25),
      ('49–73', 25),
      ('74–99', 26),
  ]


def test_smoothing_keeps_a_constant_and_the_length():
  np.testing.assert_allclose(measures.smooth([2.0] * 7, 3), [2.0] * 7)
  np.testing.assert_allclose(measures.smooth([0, 3, 0], 3), [1.5, 1, 1.5])
  np.testing.assert_allclose(measures.smooth([4.0], 5), [4.0])


def test_thinning_keeps_both_ends():
  assert measures.thin(range(100), 3) == [0, 50, 99]
  assert measures.thin([1, 2], 3) == [1, 2]
