"""A rule picks the cut that its definition names."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from palign_jax.judging import rules

CHANCES = st.lists(st.integers(0, 8).map(lambda n: n / 8), max_size=24)


def verdicts(said):
  return [rules.Verdict(bool(x), p_enough=float(x)) for x in said]


def test_the_first_that_suffices():
  assert rules.first(verdicts([0, 1, 0, 1])) == 2
  assert rules.first(verdicts([0, 0])) is None
  assert rules.first([]) is None


@pytest.mark.parametrize(
    'said, num, cut',
    [
        ([0, 1, 0, 1, 1, 0], 2, 4),
        ([0, 1, 0, 1, 1, 0], 3, None),
        ([0, 1, 0, 1, 1, 1], 3, 4),
        ([0, 1, 0, 0, 0, 1], 3, 6),  # The end of the trace is no objection.
        ([1], 5, 1),
        ([1, 0], 1, 1),
    ],
)
def test_so_many_in_a_row(said, num, cut):
  assert rules.stable(verdicts(said), num) == cut


def test_pooled_by_hand():
  fitted = rules.fit_isotonic([0.1, 0.6, 0.2, 0.9, 0.4, 0.8])
  np.testing.assert_allclose(fitted, [0.1, 0.4, 0.4, 0.65, 0.65, 0.8])
  assert rules.isotonic(verdicts([0.1, 0.6, 0.2, 0.9, 0.4, 0.8]), 0.5) == 4


@settings(max_examples=100, deadline=None)
@given(CHANCES)
def test_the_fit_is_the_nearest_that_never_falls(values):
  fitted = rules.fit_isotonic(values)
  assert np.all(np.diff(fitted) >= 0)
  # The min-max formula of isotonic regression (Barlow et al. 1972).
  n = len(values)
  mean = lambda i, j: np.mean(values[i : j + 1])
  expected = [
      max(min(mean(i, j) for j in range(k, n)) for i in range(k + 1))
      for k in range(n)
  ]
  np.testing.assert_allclose(fitted, expected, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(CHANCES, st.integers(1, 4))
def test_on_a_curve_that_never_falls_all_rules_agree(values, num):
  said = [rules.Verdict(p >= 0.5, p_enough=p) for p in sorted(values)]
  cut = rules.first(said)
  assert rules.stable(said, num) == cut
  assert rules.isotonic(said, 0.5) == cut


def test_a_rule_by_its_name():
  said = verdicts([1, 0, 0, 1, 0, 1, 1])
  picks = {
      name: rules.find(name, num=2, threshold=0.5)(said) for name in rules.RULES
  }
  assert picks == {'first': 1, 'stable': 6, 'isotonic': 4}
