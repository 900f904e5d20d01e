"""From the log-odds of two labels to a verdict that can be trusted.

Two things are wrong with raw log-odds.  A model likes one label better whatever
it reads; the log-odds after an empty prefix say by how much (the prior
correction of Zhao et al. 2021, arXiv 2102.09690, with the trace's own question
as the content-free input).  And 0.5 need not be where the student begins to
succeed; rows of a yardstick say where it is.
"""

import dataclasses
import math

from etils import epath
import numpy as np

from palign_jax.core import errors, jsonl


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How log-odds become a chance, and from where on it is enough.

  Attributes:
    threshold: Of the chance.
    prior: Whether the log-odds of the empty prefix are subtracted first.
    slope: Then the log-odds are multiplied by it.
    offset: And this is added.
    num_rows: How many rows the numbers were fitted on; 0 is none.
  """

  threshold: float
  prior: bool = False
  slope: float = 1.0
  offset: float = 0.0
  num_rows: int = 0

  def margin(self, raw: float, empty: float) -> float:
    """Returns calibrated log-odds; `empty` are those of the empty prefix."""
    if self.prior:
      raw -= empty
    return self.slope * raw + self.offset

  def facts(self) -> dict[str, float | int | bool]:
    """Returns the numbers, for a summary."""
    return {
        name: round(value, 6) if isinstance(value, float) else value
        for name, value in dataclasses.asdict(self).items()
    }


def chance(margin: float) -> float:
  """Returns the probability of log-odds."""
  # Not exp(margin): it overflows where a sigmoid is simply 1.
  return 0.5 * (1 + math.tanh(margin / 2))


def log_odds(chance: float) -> float:
  """Returns the log-odds of a probability, at most 21 nats either way."""
  chance = min(max(chance, 1e-9), 1 - 1e-9)
  return math.log(chance / (1 - chance))


def fitted(calibration: Calibration, path: str, fit: str) -> Calibration:
  """Returns a calibration that was fitted on the rows of a file.

  Args:
    calibration: Says whether a prior is subtracted; with 'platt' its threshold
      stays.
    path: Rows with a `label` (0 or 1: continuations from there pass) and a
      `margin` or a `p_enough`; with a prior also `prior`, the log-odds of the
      empty prefix.  The files that a yardstick writes are such.
    fit: 'threshold' or 'platt'.

  Raises:
    DataError: If the rows do not serve.
  """
  margins, labels = _read(path, calibration.prior)
  found = dataclasses.replace(calibration, num_rows=len(labels))
  if fit == 'platt':
    slope, offset = fit_platt(margins, labels)
    rises = slope > 0
    found = dataclasses.replace(found, slope=slope, offset=offset)
  else:
    cut, balanced = fit_threshold(margins, labels)
    rises = balanced > 0.5
    found = dataclasses.replace(found, threshold=chance(cut))
  if not rises:
    raise errors.DataError(
        f'config.truncate.calibration_rows: in {path} success does not rise'
        " with the judge's log-odds, so nothing can be fitted; leave the field"
        ' out, or take rows of this student and prompt.'
    )
  return found


def _read(path: str, prior: bool) -> tuple[np.ndarray, np.ndarray]:
  margins, labels = [], []
  place = epath.Path(path)
  if not place.exists():
    raise errors.DataError(
        f'config.truncate.calibration_rows: {path} is not there; a run with'
        ' config.truncate.yardstick.traces above 0 writes such a file.'
    )
  for number, row in enumerate(jsonl.read(place), 1):
    margin, label = _margin(row), row.get('label')
    if prior and margin is not None:
      empty = row.get('prior')
      margin = margin - empty if _is_number(empty) else None
    if margin is None or label not in (0, 1):
      wanted = 'a margin and the prior' if prior else 'a margin or p_enough'
      raise errors.DataError(
          f'{path}, row {number}: calibration needs {wanted} and a label of 0'
          f' or 1; it has {sorted(row)}.'
      )
    margins.append(margin)
    labels.append(bool(label))
  if not 0 < sum(labels) < len(labels):
    raise errors.DataError(
        f'{path}: all {len(labels)} rows have the same label; calibration needs'
        ' cuts that pass and cuts that fail.'
    )
  return np.array(margins, np.float64), np.array(labels, bool)


def _margin(row: jsonl.Row) -> float | None:
  if _is_number(row.get('margin')):
    return float(row['margin'])
  p = row.get('p_enough')
  if not _is_number(p) or not 0 <= p <= 1:
    return None
  return log_odds(p)


def _is_number(value: object) -> bool:
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  return is_number and math.isfinite(value)


def fit_threshold(
    margins: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
  """Returns where to cut log-odds, and the balanced accuracy of that.

  It is the best mean of the shares of passing rows at or above the cut and of
  failing rows below it (Youden's J), halfway between two rows.  Of several as
  good, the highest: a cut that comes too early costs more than a few sentences.
  """
  order = np.argsort(margins, kind='stable')
  x, passes = margins[order], labels[order]
  # Cut i leaves rows 0 to i - 1 below.
  passes_below = np.concatenate([[0], np.cumsum(passes)])
  fails_below = np.arange(len(x) + 1) - passes_below
  balanced = (
      (1 - passes_below / passes_below[-1]) + fails_below / fails_below[-1]
  ) / 2
  edges = np.concatenate([[x[0] - 1], (x[1:] + x[:-1]) / 2, [x[-1] + 1]])
  # Between two equal rows there is no cut.
  apart = np.concatenate([[True], x[1:] > x[:-1], [True]])
  balanced = np.where(apart, balanced, -1)
  best = np.flatnonzero(balanced == balanced.max())[-1]
  return float(edges[best]), float(balanced[best])


def fit_platt(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
  """Returns slope and offset of the chance of success in log-odds.

  Logistic regression by Newton's method with halved steps; the labels are drawn
  in as Platt 1999 does, so that rows which part cleanly give no infinity.
  """
  num_good, num_bad = labels.sum(), (~labels).sum()
  wanted = np.where(labels, (num_good + 1) / (num_good + 2), 1 / (num_bad + 2))
  mean, scale = margins.mean(), max(margins.std(), 1e-9)
  inputs = np.stack([(margins - mean) / scale, np.ones(len(margins))], 1)
  # log(1 + exp(z)) - wanted * z, added up.
  loss = lambda w: np.sum(np.logaddexp(0, inputs @ w) - wanted * (inputs @ w))
  weights = np.zeros(2)
  for _ in range(100):
    p = 0.5 * (1 + np.tanh(inputs @ weights / 2))
    gradient = inputs.T @ (p - wanted)
    curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs
    step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
    size, before = 1.0, loss(weights)
    while size > 1e-10 and loss(weights - size * step) > before:
      size /= 2
    weights = weights - size * step
    if np.abs(size * step).max() < 1e-10:
      break
  slope = weights[0] / scale
  return float(slope), float(weights[1] - slope * mean)
