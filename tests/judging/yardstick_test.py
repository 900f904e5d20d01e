"""A yardstick measures what it is told to, and counts what it cost."""

import dataclasses

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from palign_jax.judging import (
    reading as reading_lib,
    search,
    trace as trace_lib,
    yardstick,
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_auroc_counts_pairs(pairs):
  scores = np.array([s for s, _ in pairs], float)
  labels = np.array([bool(x) for _, x in pairs], bool)
  good, bad = scores[labels], scores[~labels]
  if not len(good) or not len(bad):
    assert yardstick.auroc(scores, labels) is None
    return
  above = (good[:, None] > bad[None]).mean()
  ties = (good[:, None] == bad[None]).mean()
  assert yardstick.auroc(scores, labels) == pytest.approx(above + ties / 2)


def test_the_interval_covers_the_truth_as_often_as_it_says(
    monkeypatch,
):
  monkeypatch.setattr(yardstick, '_RESAMPLES', 200)
  covered = 0
  for seed in range(40):
    rng = np.random.default_rng(seed)
    names = [str(i) for i in range(60) for _ in range(3)]
    labels = rng.random(180) < 0.5
    scores = rng.normal(labels * 1.0, 1.0)  # AUROC 0.760.
    low, high = yardstick.interval(scores, labels, names, seed)
    covered += low <= 0.760 <= high
  assert 34 <= covered <= 40


def test_no_interval_without_two_traces_or_both_labels():
  scores, labels = np.array([1.0, 2.0]), np.array([True, False])
  assert yardstick.interval(scores, labels, ['a', 'a'], 0) == (None, None)
  same = np.array([True, True])
  assert yardstick.interval(scores, same, ['a', 'b'], 0) == (None, None)


def test_the_sample_does_not_depend_on_order():
  names = [f't{i}' for i in range(50)]
  drawn = yardstick.sample(names, 7, 0)
  assert len(set(drawn)) == 7 and drawn == yardstick.sample(names[::-1], 7, 0)
  assert drawn != yardstick.sample(names, 7, 1)
  assert set(drawn) < set(yardstick.sample(names, 8, 0))
  assert yardstick.sample(names, 99, 0) == sorted(names)


@pytest.mark.parametrize(
    'total, chosen, num, expected',
    [
        (12, None, 4, [3, 6, 9, 12]),
        (12, 5, 4, [3, 5, 6, 9, 12]),
        (12, 6, 4, [3, 6, 9, 12]),
        (2, None, 4, [1, 2]),
        (1, 1, 3, [1]),
    ],
)
def test_places(total, chosen, num, expected):
  assert yardstick.places(total, chosen, num) == expected


def row(name, sentences, label, chosen=False, **scores):
  score = {**dict.fromkeys(yardstick.JUDGES.values(), 0.0), **scores}
  return {
      'id': name,
      'sentences': sentences,
      'chosen': chosen,
      'label': label,
      'k': 4,
      'passes': 3 * label,
      **score,
  }


def test_a_cut_came_too_early_if_a_longer_one_passes():
  rows = [
      *(row('a', 1, 0, chosen=True), row('a', 3, 1)),
      *(row('b', 1, 1), row('b', 3, 0, chosen=True)),  # Only a shorter one.
      *(row('c', 2, 1, chosen=True), row('c', 3, 1)),
      *(row('d', 2, 0), row('d', 3, 1)),  # None was chosen.
  ]
  assert yardstick.too_early(rows) == (1, 3)


class Counting:
  """What counts tokens, one for each cut it is asked about."""

  def __init__(self, goal):
    self.num_tokens, self._goal, self.asked = 0, goal, []

  def search(self, readings, begin, advance):
    def ask(probes):
      self.asked.append([(p.trace_id, p.length) for p in probes])
      self.num_tokens += len(probes)
      margin = lambda p: (-1.0) ** p.length + p.length / 4
      return [
          search.Verdict(p.length > 3, p_enough=p.length / 10, margin=margin(p))
          for p in probes
      ]

    return search.drive({r.trace.id: begin(r) for r in readings}, ask)

  def read(self, trace, limit):
    return reading_lib.Reading(trace, min(limit, len(trace.ends)))

  def judge(self, cuts, k, draw):
    self.num_tokens += 10 * k * len(cuts)
    return [
        search.Verdict(
            n >= self._goal, rollouts=k, passes=k * (n >= self._goal)
        )
        for _, n in cuts
    ]


measure = getattr(yardstick.measure, '__wrapped__', yardstick.measure)


def test_a_context_without_room_for_any_reply():
  trace = trace_lib.Trace('a', 'q', 'xxx', range(1, 4), '1')
  judges = Counting(0), Counting(4), Counting(0)
  measured = measure(
      [reading_lib.Reading(trace, 3)],
      {},
      *judges,
      num_cuts=2,
      k=3,
      reply_limit=0,
  )
  assert [r['reply'] for r in measured.rows] == [None, None]
  found = yardstick.facts(measured, 0)['judges']['reply']
  assert (found['cuts'], found['auroc']) == (0, None)


def test_a_measurement_from_end_to_end():
  readings = [
      reading_lib.Reading(
          trace_lib.Trace(name, 'q', 'x' * num, range(1, num + 1), '1'), num
      )
      for name, num in (('a', 8), ('b', 5))
  ]
  judge, verifier, replier = Counting(0), Counting(4), Counting(0)
  measured = measure(
      readings,
      {'a': 3},
      *(judge, verifier, replier),
      num_cuts=2,
      k=3,
      reply_limit=6,
  )
  cuts = [('a', 3), ('a', 4), ('a', 8), ('b', 2), ('b', 5)]
  assert [(r['id'], r['sentences']) for r in measured.rows] == cuts
  assert [r['label'] for r in measured.rows] == [0, 1, 1, 0, 1]
  assert [r['passes'] for r in measured.rows] == [0, 3, 3, 0, 3]
  assert [r['chosen'] for r in measured.rows] == [True] + [False] * 4
  assert [r['total_sentences'] for r in measured.rows] == [8, 8, 8, 5, 5]
  for r in measured.rows:
    assert r['prior'] == 1.0 and r['corrected'] == r['margin'] - 1.0
    assert r['isotonic'] == r['p_enough'] == r['sentences'] / 10
  # The longest cut of a leaves no room for a reply.
  assert [r['reply'] for r in measured.rows] == [0, 1, None, 0, 1]
  assert measured.tokens == {
      'reply': 4,
      'label': 5,
      'prior': 7,
      'isotonic': 13,
      'rollouts': 150,
  }
  assert measured.num_traces == 2
  # What a trace has cost is also what one without room for anything has cost.
  alone = dataclasses.replace(measured, rows=measured.rows[:3])
  cost = lambda m: yardstick.facts(m, 0)['judges']['rollouts']
  assert cost(alone) == cost(measured)
  facts = yardstick.facts(measured, 0)
  assert (facts['traces'], facts['cuts'], facts['rollouts']) == (2, 5, 15)
  assert (facts['too_early'], facts['chosen']) == (1, 1)
  assert facts['passing'] == facts['passes'] == 0.6
  assert facts['judges']['isotonic']['auroc'] == 1.0
  # Margins 3: -0.25, 4: 2, 8: 3; 2: 1.5, 5: 0.25.
  assert facts['judges']['label']['auroc'] == round(5 / 6, 4)
  assert {k: v.get('cuts') for k, v in facts['judges'].items()} == {
      **dict.fromkeys(('label', 'prior', 'isotonic'), 5),
      **{'reply': 4, 'rollouts': None},
  }
  assert facts['judges']['rollouts']['tokens_per_trace'] == 75
