"""What a summary counts of rows, on rows whose counts are known."""

import dataclasses

import pytest

from configs import common
from palign_jax.judging import search
from palign_jax.stages import prefixes, validation


def row(said, **fields):
  """A kept row of a curve; `said` has a + for each cut that was enough."""
  probes = [
      {'sentences': n, 'enough': c == '+', 'margin': 1.0, 'p_enough': 0.7}
      for n, c in enumerate(said, 1)
  ]
  values = dict(status='kept', reason='', prefix_ratio=0.5, abstained=0)
  return {'probes': probes[::-1], **values, **fields}  # In any order.


def settings(search='curve'):
  t = validation.read(common.base().to_dict()).truncate
  return dataclasses.replace(t, search=search)


ROWS = [
    row('--+++'),  # None of 4 pairs falls.
    row('+-+-', reason='no_prefix', prefix_ratio=1.0),  # 2 of 3.
    row('++-', abstained=1),  # 1 of 2.
    row('', status='dropped', reason='too_long', prefix_ratio=0.0),
]


def test_falls_are_counted_per_pair_and_per_judged_trace():
  facts = prefixes.counts(ROWS, settings(), 0.5)
  assert facts['not_monotone'] == 2
  assert facts['violations'] == round(3 / 9, 4)
  assert facts['traces_with_violations'] == round(2 / 3, 4)


def test_a_search_that_halves_sees_none_and_says_none():
  facts = prefixes.counts(ROWS, settings('binary'), 0.5)
  assert not {'not_monotone', 'violations'} & set(facts)


def test_all_rows_are_counted():
  facts = prefixes.counts(ROWS, settings(), 0.5)
  assert facts['status'] == {'kept': 3, 'dropped': 1}
  assert facts['reason'] == {'sufficient': 2, 'no_prefix': 1, 'too_long': 1}
  assert (facts['probes'], facts['abstained']) == (12, 1)
  assert facts['mean_prefix_ratio'] == round(2 / 3, 4)


@pytest.mark.parametrize(
    'threshold, share', [(0.5, 0.0), (0.72, 1.0), (0.9, 0.0)]
)
def test_near_is_within_a_tenth_of_a_nat(threshold, share):
  facts = prefixes.counts(ROWS, settings(), threshold)
  assert facts['within_0.1_nat'] == share


def test_what_is_kept_whole_for_want_of_a_prefix_was_not_chosen():
  assert [prefixes.is_chosen(row) for row in ROWS] == [True, False, True, False]
  assert prefixes.is_chosen(row('', reason='never_judged'))
  assert not prefixes.is_chosen(row('+', reason='no_room'))


@pytest.mark.parametrize(
    'rollouts, reason',
    [((0, 0), 'no_room'), ((0, 2), 'no_prefix'), ((), 'no_prefix')],
)
def test_where_nothing_could_be_drawn_nothing_has_failed(rollouts, reason):
  proofs = {
      n: search.Verdict(False, rollouts=k, passes=0)
      for n, k in enumerate(rollouts, 1)
  }
  found = search.Found(search.Cut(None), {}, proofs)
  assert prefixes._unproven(found) == reason
