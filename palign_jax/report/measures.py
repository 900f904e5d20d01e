"""The numbers behind the report's figures; plain Python and NumPy."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import math

import numpy as np

from palign_jax.report import inputs, numbers

_Z = 1.959964  # The normal's 97.5% point.


@dataclasses.dataclass(frozen=True)
class Level:
  """How many questions are left after a stage, and why the others are not.

  Attributes:
    name: What is counted.
    left: Questions left.
    lost: Questions that the level above still had, by reason, most first.
    gained: Questions that come in beside those of the level above.
  """

  name: str
  left: int
  lost: Mapping[str, int]
  gained: int = 0


def reasons(names: Iterable[str]) -> dict[str, int]:
  """Counts names, the most frequent first, ties by name."""
  counts = collections.Counter(names)
  return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def kept(prefix: Mapping) -> bool:
  """Whether a prefix went on; the reference's rows carry no status."""
  return prefix.get('status', 'kept') == 'kept'


def ids(rows: Iterable[Mapping]) -> set[str]:
  """Returns the ids that occur."""
  return {str(row['id']) for row in rows if 'id' in row}


def funnel(run: inputs.Run) -> list[Level]:
  """Follows the questions from trace to training row.

  Each lost question has exactly one reason, so that a level's losses add up;
  with several rejected samples it is the one given most often.
  """
  said = collections.defaultdict(list)
  for row in run.rejected or ():
    said[str(row.get('id'))].append(str(row.get('reason', 'no reason given')))
  why_rejected = {id_: next(iter(reasons(r))) for id_, r in said.items()}
  why_dropped = {
      str(row.get('id')): str(row.get('reason') or 'no reason given')
      for row in run.prefixes or ()
      if not kept(row)
  }
  right = lambda rows: ids(r for r in rows if r.get('verdict') == 'correct')
  steps = [
      ('traces', run.traces, ids, {}),
      (
          'prefix kept',
          run.prefixes,
          lambda r: ids(filter(kept, r)),
          why_dropped,
      ),
      ('continued', run.completions, ids, why_rejected),
      ('correct', run.train, right, why_rejected),
      ('in the training set', run.train, ids, why_rejected),
  ]
  levels, above = [], None
  trained = {str(r.get('id')): str(r.get('verdict')) for r in run.train or ()}
  for name, rows, select, why in steps:
    if rows is None:
      continue
    here = select(rows)
    lost = (above or here) - here
    levels.append(
        Level(
            name,
            len(here),
            reasons(
                why.get(i) or trained.get(i, 'not accounted for') for i in lost
            ),
            gained=len(here - above) if above is not None else 0,
        )
    )
    above = here
  return levels


def wilson(share: float, n: int) -> tuple[float, float]:
  """Returns the 95% interval of a share of n problems.

  Where each problem counts by the mean of its samples this is too wide rather
  than too narrow: such a mean varies less than one right-or-wrong answer.
  """
  centre = share + _Z**2 / (2 * n)
  half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n * n))
  scale = 1 + _Z**2 / n
  return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mean_label(answer: inputs.Answer) -> float:
  """Returns the share of correct samples; no sample at all is wrong."""
  return sum(answer.labels) / len(answer.labels) if answer.labels else 0.0


@dataclasses.dataclass(frozen=True)
class Bin:
  """Accuracy of one model on the problems of about one difficulty."""

  label: str
  share: float
  low: float
  high: float
  n: int


def by_difficulty(
    models: Mapping[str, Sequence[inputs.Answer]], max_bins: int = 10
) -> dict[str, list[Bin | None]]:
  """Groups graded answers by difficulty, the same way for each model.

  More than `max_bins` values are joined into groups of about equal size.  A
  group without problems of some model is None.
  """
  graded = {
      model: [a for a in answers if a.labels is not None]
      for model, answers in models.items()
  }
  values = [
      a.difficulty
      for answers in graded.values()
      for a in answers
      if a.difficulty is not None
  ]
  edges = sorted(set(values))
  if len(edges) > max_bins:
    quantiles = np.quantile(values, np.linspace(0, 1, max_bins + 1)[:-1])
    edges = sorted({max(e for e in edges if e <= q) for q in quantiles})
  bins = {}
  for model, answers in graded.items():
    groups = collections.defaultdict(list)
    for a in answers:
      if a.difficulty is not None:
        groups[max(e for e in edges if e <= a.difficulty)].append(a)
    bins[model] = [_bin(groups[edge]) for edge in edges]
  return bins if edges else {}


def _bin(answers: Sequence[inputs.Answer]) -> Bin | None:
  if not answers:
    return None
  low, high = (f([a.difficulty for a in answers]) for f in (min, max))
  share = float(np.mean([mean_label(a) for a in answers]))
  label = f'{low:g}' if low == high else f'{low:g}{numbers.DASH}{high:g}'
  return Bin(label, share, *wilson(share, len(answers)), len(answers))


def smooth(values: Sequence[int | float], window: int) -> np.ndarray:
  """Returns the running mean over `window` values, shorter at the ends."""
  ones = np.ones(min(window, len(values)))
  total = np.convolve(values, ones, 'same')
  return total / np.convolve(np.ones(len(values)), ones, 'same')


def thin(rows: Sequence, most: int) -> list:
  """Returns at most `most` of the rows, evenly spaced, both ends kept."""
  if len(rows) <= most:
    return list(rows)
  return [
      rows[i] for i in np.linspace(0, len(rows) - 1, most).round().astype(int)
  ]


def quantiles(values: Sequence[int | float]) -> tuple[float, ...]:
  """Returns the 5%, 25%, 50%, 75% and 95% points."""
  return tuple(np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95)).tolist())
