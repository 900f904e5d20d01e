"""Scores of graded rows, with bootstrap intervals over problems.

Every problem counts once, whatever became of it: samples that are not there
(a row without output, or with fewer than others) are wrong ones.

Source: pass@k is the unbiased estimator of Chen et al., "Evaluating Large
Language Models Trained on Code" (arXiv 2107.03374), equation 1.
"""

import collections
from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from palign_jax.core import errors
from palign_jax.grading import answers

# Percentiles of the resampled means: a 95% interval.
_LOW, _HIGH = 2.5, 97.5
# Resamples held in memory at once; the result does not depend on it.
_CHUNK = 500


@dataclasses.dataclass(frozen=True)
class Bootstrap:
  """How intervals are drawn.

  Attributes:
    num_resamples: Resamples of the problems.
    seed: Of the generator; the same seed and data give the same interval.
  """

  num_resamples: int
  seed: int


def score(
    rows: Sequence[Mapping[str, Any]], bootstrap: Bootstrap
) -> dict[str, dict[str, float | int]]:
  """Returns each metric's value, interval, and numbers of problems and samples.

  Args:
    rows: Graded rows of one benchmark, one for each problem: `label`,
      `output_ans` and `boxed_label` with one entry for each sample, and
      `finish_reason` likewise where it is known.
    bootstrap: How intervals are drawn.

  Returns:
    {metric: {'value', 'low', 'high', 'n', 'samples'}} for `pass@1`, `first`,
    `pass@2` up to `pass@n`, `maj@n`, `boxed_only`, and, where a row has a
    `finish_reason`, `truncated` and `loops`.

  Raises:
    DataError: If there are no rows, or a row's lists differ in length.
  """
  values = per_problem(rows)
  samples = num_samples(rows)
  result = {}
  for name, interval in _intervals(values, bootstrap).items():
    result[name] = interval | {'n': len(rows), 'samples': samples}
  return result


def paired(
    before: Sequence[Mapping[str, Any]],
    after: Sequence[Mapping[str, Any]],
    bootstrap: Bootstrap,
) -> dict[str, dict[str, float | int]]:
  """Returns `after` minus `before`, problem by problem, for shared metrics.

  A problem's two results are resampled together: what makes it hard is common
  to both, so the interval is narrower than that of two scores apart.

  Args:
    before: Graded rows with an `id`.
    after: The same problems, in any order.
    bootstrap: How intervals are drawn.

  Returns:
    {metric: {'value', 'low', 'high', 'n'}}.

  Raises:
    DataError: If the two do not hold the same problems.
  """
  places = {row['id']: i for i, row in enumerate(after)}
  ids = [row['id'] for row in before]
  odd = set(ids) ^ set(places)
  if odd or len(ids) != len(after):
    raise errors.DataError(
        f'before and after: {len(ids)} and {len(after)} rows, {len(odd)} ids in'
        f' one alone, such as {sorted(odd)[:1]}; sample both models on the same'
        ' file.'
    )
  first = per_problem(before)
  second = per_problem([after[places[i]] for i in ids])
  differences = {
      name: second[name] - first[name] for name in first if name in second
  }
  return {
      name: interval | {'n': len(ids)}
      for name, interval in _intervals(differences, bootstrap).items()
  }


def num_samples(rows: Sequence[Mapping[str, Any]]) -> int:
  """Returns the samples of the row that has most, and at least 1."""
  return max((len(row['label']) for row in rows), default=0) or 1


def per_problem(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
  """Returns each metric's value for each problem, as float64 [problems]."""
  if not rows:
    raise errors.DataError('scores: there are no rows; grade a file with some.')
  n = num_samples(rows)
  known = any('finish_reason' in row for row in rows)
  for number, row in enumerate(rows, 1):
    _check(row, number, known)
  correct = np.array([sum(row['label']) for row in rows], np.int64)
  metrics = {
      'pass@1': correct / n,
      'first': np.array([sum(row['label'][:1]) for row in rows], np.float64),
  }
  for k in range(2, n + 1):
    table = np.array([pass_at_k(n, c, k) for c in range(n + 1)])
    metrics[f'pass@{k}'] = table[correct]
  metrics[f'maj@{n}'] = np.array([majority(row) for row in rows], np.float64)
  boxed = [sum(row['boxed_label']) for row in rows]
  metrics['boxed_only'] = np.array(boxed, np.float64) / n
  if known:
    for name, reason in (('truncated', 'length'), ('loops', 'loop')):
      ends = [list(row.get('finish_reason') or ()) for row in rows]
      metrics[name] = np.array([e.count(reason) for e in ends]) / n
  return metrics


def _check(row: Mapping[str, Any], number: int, known: bool) -> None:
  fields = ['output_ans', 'boxed_label'] + ['finish_reason'] * known
  for field in fields:
    if len(row.get(field) or ()) != len(row['label']):
      raise errors.DataError(
          f'row {number}: {len(row["label"])} labels, but'
          f' {len(row.get(field) or ())} in {field!r}; grade the file anew.'
      )


def pass_at_k(n: int, num_correct: int, k: int) -> float:
  """Returns the chance that k of n samples, drawn at random, hold a hit."""
  return 1.0 - math.comb(n - num_correct, k) / math.comb(n, k)


def majority(row: Mapping[str, Any]) -> int:
  """Returns the label of the answer that most samples gave.

  Samples without an answer have no vote; among equals the one that came first
  wins.
  """
  votes = collections.Counter()
  labels = {}
  for answer, label in zip(row['output_ans'], row['label'], strict=True):
    if answer is not None:
      key = answers.canonical(answer)
      votes[key] += 1
      labels.setdefault(key, label)
  if not votes:
    return 0
  # Of equal counts, `max` takes the first, and a Counter keeps its order.
  return int(labels[max(votes, key=votes.__getitem__)])


def _intervals(
    values: Mapping[str, np.ndarray], bootstrap: Bootstrap
) -> dict[str, dict[str, float | int]]:
  """Resamples the problems, the same ones for every metric."""
  stacked = np.stack(list(values.values()), axis=1)
  n = stacked.shape[0]
  rng = np.random.default_rng(bootstrap.seed)
  means = []
  for start in range(0, bootstrap.num_resamples, _CHUNK):
    size = min(_CHUNK, bootstrap.num_resamples - start)
    times = rng.multinomial(n, np.full(n, 1 / n), size=size)
    means.append(times @ stacked / n)
  low, high = np.percentile(np.concatenate(means), [_LOW, _HIGH], axis=0)
  return {
      name: {
          'value': float(column.mean()),
          'low': float(low[i]),
          'high': float(high[i]),
      }
      for i, (name, column) in enumerate(values.items())
  }
