"""Picks a cut from the verdicts on every boundary of a trace.

A judge's curve goes up and down.  `first` takes it at its word; `stable` wants
the next boundaries to agree; `isotonic` fits the curve that never falls and is
closest to it in squares, and reads that one.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the judge says of one prefix.

  Attributes:
    enough: Whether it suffices.
    p_enough: Probability of the label [ENOUGH] against [NOT_ENOUGH], after
      calibration; None if the verdict was generated as text.
    margin: Log-odds of p_enough in nats; None likewise.
    abstained: Whether p_enough was too close to the threshold to say.
    response: The generated text, or ''.
    rollouts: How many continuations the verdict rests on; 0 is none.
    passes: How many of them were right.
  """

  enough: bool
  p_enough: float | None = None
  margin: float | None = None
  abstained: bool = False
  response: str = ''
  rollouts: int = 0
  passes: int = 0


# Verdicts on 1, 2, ... sentences to the number of sentences, None for no cut.
Pick = Callable[[Sequence[Verdict]], int | None]


def first(verdicts: Sequence[Verdict]) -> int | None:
  """Returns the shortest sufficient prefix."""
  return stable(verdicts, 1)


def stable(verdicts: Sequence[Verdict], num: int) -> int | None:
  """Returns the first of `num` sufficient boundaries in a row.

  A run that reaches the end of the trace counts however short it is: nothing
  after it says otherwise.
  """
  enough = [verdict.enough for verdict in verdicts]
  for i in range(len(enough)):
    if all(enough[i : i + num]):
      return i + 1
  return None


def isotonic(verdicts: Sequence[Verdict], threshold: float) -> int | None:
  """Returns the first boundary whose fitted p_enough reaches the threshold."""
  fitted = fit_isotonic([verdict.p_enough for verdict in verdicts])
  reached = np.flatnonzero(fitted >= threshold)
  return int(reached[0]) + 1 if len(reached) else None


def fit_isotonic(values: Sequence[float]) -> np.ndarray:
  """Returns the non-decreasing sequence that is nearest in least squares.

  Pool adjacent violators: neighbours in the wrong order become one block with
  the mean of both, until no block lies below the one before it.
  """
  means: list[float] = []
  sizes: list[int] = []
  for value in values:
    mean, size = float(value), 1
    while means and means[-1] >= mean:
      total = means.pop() * sizes[-1] + mean * size
      size += sizes.pop()
      mean = total / size
    means.append(mean)
    sizes.append(size)
  return np.repeat(np.array(means, np.float64), sizes)


def find(name: str, *, num: int, threshold: float) -> Pick:
  """Returns the rule of a name in `RULES` with its numbers."""
  return RULES[name](num, threshold)


RULES: Mapping[str, Callable[[int, float], Pick]] = {
    'first': lambda num, threshold: first,
    'stable': lambda num, threshold: lambda verdicts: stable(verdicts, num),
    'isotonic': (
        lambda num, threshold: lambda verdicts: isotonic(verdicts, threshold)
    ),
}
