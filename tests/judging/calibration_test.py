"""Calibration finds what the rows say, and says when they say nothing."""

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from palign_jax.core import errors, jsonl
from palign_jax.judging import calibration as calibration_lib

RAW = calibration_lib.Calibration(0.5)
PRIOR = calibration_lib.Calibration(0.5, prior=True)


def balanced(margins, labels, cut):
  above = margins >= cut
  return (above[labels].mean() + (~above[~labels]).mean()) / 2


def arrays(margins, labels):
  return np.array(margins, float), np.array(labels, bool)


def rows(tmp_path, *values):
  path = str(tmp_path / 'rows.jsonl')
  jsonl.write(path, values)
  return path


def test_a_chance_is_a_sigmoid_that_does_not_overflow():
  assert calibration_lib.chance(0.0) == 0.5
  assert calibration_lib.chance(2000.0) == 1.0
  assert calibration_lib.chance(-2000.0) == 0.0
  assert calibration_lib.chance(1.5) == pytest.approx(1 / (1 + np.exp(-1.5)))


def test_log_odds_are_finite():
  for margin in (-3.0, 0.0, 1.5):
    chance = calibration_lib.chance(margin)
    assert calibration_lib.log_odds(chance) == pytest.approx(margin)
  assert 20 < calibration_lib.log_odds(1.2) < 21
  assert -21 < calibration_lib.log_odds(-0.2) < -20


def test_the_prior_is_subtracted_before_the_scale():
  fitted = calibration_lib.Calibration(0.5, prior=True, slope=2.0, offset=-1.0)
  assert fitted.margin(3.0, 1.0) == 3.0
  assert RAW.margin(3.0, 1.0) == 3.0 and PRIOR.margin(3.0, 1.0) == 2.0


def test_the_threshold_parts_what_can_be_parted():
  cut, share = calibration_lib.fit_threshold(
      *arrays([-2, 0.5, 1, 3], [0, 0, 1, 1])
  )
  assert (cut, share) == (0.75, 1.0)
  # Of cuts that are as good the highest: at 2.5 half pass, and no failure.
  cut, share = calibration_lib.fit_threshold(
      *arrays([1, 1, 2, 3], [0, 1, 0, 1])
  )
  assert (cut, share) == (2.5, 0.75)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=20
    ).filter(lambda rows: len({label for _, label in rows}) == 2)
)
def test_no_threshold_is_better(pairs):
  margins, labels = arrays(*zip(*pairs, strict=True))
  cut, share = calibration_lib.fit_threshold(margins, labels)
  assert balanced(margins, labels, cut) == pytest.approx(share)
  others = [balanced(margins, labels, c + 0.5) for c in range(-6, 6)]
  assert share == pytest.approx(max(others))


def test_platt_finds_the_line_that_made_the_labels():
  rng = np.random.default_rng(0)
  margins = rng.normal(3, 2, 20_000)
  p = 1 / (1 + np.exp(-(1.5 * margins - 4)))
  slope, offset = calibration_lib.fit_platt(margins, rng.random(20_000) < p)
  assert slope == pytest.approx(1.5, rel=0.05)
  assert offset == pytest.approx(-4, rel=0.05)


def test_platt_is_finite_on_what_parts_cleanly():
  slope, offset = calibration_lib.fit_platt(
      *arrays([-50, -40, 40, 60], [0, 0, 1, 1])
  )
  assert 0 < slope < 1 and np.isfinite(offset)
  # Its minimum: the gradient of Platt's loss is nothing there.
  margins = np.array([-50, -40, 40, 60])
  p = 1 / (1 + np.exp(-(slope * margins + offset)))
  off = p - [0.25, 0.25, 0.75, 0.75]
  assert abs(off.sum()) < 1e-6 and abs((off * margins).sum()) < 1e-4


def test_rows_of_a_file(tmp_path):
  path = rows(
      tmp_path,
      {'margin': 1.0, 'prior': 3.0, 'label': 0},
      {'margin': 2.0, 'prior': 0.0, 'label': 1},
      {'p_enough': 0.5, 'prior': 1.0, 'label': 0},
  )
  fitted = calibration_lib.fitted(RAW, path, 'threshold')
  assert fitted.threshold == pytest.approx(calibration_lib.chance(1.5))
  assert (fitted.num_rows, fitted.slope, fitted.offset) == (3, 1.0, 0.0)
  fitted = calibration_lib.fitted(PRIOR, path, 'threshold')
  assert fitted.threshold == pytest.approx(calibration_lib.chance(0.5))
  fitted = calibration_lib.fitted(RAW, path, 'platt')
  assert fitted.threshold == 0.5 and fitted.slope > 0
  assert set(fitted.facts()) == {
      *('threshold', 'prior', 'slope', 'offset', 'num_rows'),
  }


GOOD, BAD = {'margin': 1.0, 'label': 1}, {'margin': -1.0, 'label': 0}


@pytest.mark.parametrize(
    'values, calibration, message',
    [
        ([GOOD, {'label': 0}], RAW, 'row 2: calibration needs a margin or p_e'),
        ([GOOD, {'margin': 1.0}], RAW, 'row 2: .* a label of 0 or 1; it has'),
        ([GOOD, {'margin': 1.0, 'label': 2}], RAW, 'row 2: calibration needs'),
        ([GOOD, BAD], PRIOR, 'row 1: calibration needs a margin and the prior'),
        ([GOOD, GOOD], RAW, 'all 2 rows have the same label'),
        (
            [GOOD | {'label': 0}, BAD | {'label': 1}],
            RAW,
            "success does not rise with the judge's log-odds",
        ),
    ],
)
@pytest.mark.parametrize('fit', ['threshold', 'platt'])
def test_rows_that_do_not_serve(tmp_path, values, calibration, message, fit):
  path = rows(tmp_path, *values)
  with pytest.raises(errors.DataError, match=message):
    calibration_lib.fitted(calibration, path, fit)


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(errors.DataError, match='yardstick.traces above 0 writes'):
    calibration_lib.fitted(RAW, str(tmp_path / 'none.jsonl'), 'platt')
