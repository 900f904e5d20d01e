"""How good are the cheap judges, measured by the dear one?

From several cuts of some traces K continuations are drawn and graded.  What a
judge says of these cuts is held against what became of them: AUROC, the chance
that a cut that passes scores above one that fails.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import time
from typing import Any

import numpy as np

from palign_jax.core import keys
from palign_jax.judging import (
    judge as judge_lib,
    reading as reading_lib,
    reply as reply_lib,
    rules,
    search as search_lib,
    verified,
)

Row = dict[str, Any]
# What a row calls each judge's score.
JUDGES = {
    'label': 'margin',
    'prior': 'corrected',
    'isotonic': 'isotonic',
    'reply': 'reply',
}
_RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Measured:
  """Rows of cuts, and what it cost to judge them.

  Attributes:
    rows: One per cut that leaves room for continuations.
    no_room: Cuts that leave none.
    num_traces: That were judged, those without room for anything included.
    tokens: Computed, by judge.
    seconds: Taken, by judge; programs that were compiled on the way included.
    total_seconds: Of all this.
  """

  rows: list[Row]
  no_room: int
  num_traces: int
  tokens: Mapping[str, int]
  seconds: Mapping[str, float]
  total_seconds: float


def sample(names: Sequence[str], num: int, seed: int) -> list[str]:
  """Returns `num` of the names, the same ones whatever their order."""
  draw = lambda name: keys.digest(seed, 'yardstick', name)
  return sorted(sorted(names, key=draw)[:num])


def places(total: int, chosen: int | None, num: int) -> list[int]:
  """Returns `num` lengths evenly up to `total`, and the chosen one."""
  even = {max(round(total * i / num), 1) for i in range(1, num + 1)}
  return sorted(even | ({chosen} if chosen else set()))


def measure(
    readings: Sequence[reading_lib.Reading],
    chosen: Mapping[str, int | None],
    judge: judge_lib.LabelJudge,
    verifier: verified.Verifier,
    replier: reply_lib.GenerateJudge,
    *,
    num_cuts: int,
    k: int,
    reply_limit: int,
) -> Measured:
  """Judges cuts of traces in every way.

  Args:
    readings: Of `judge`; traces with verifiable answers.
    chosen: Which cut of each the run has taken; None for none.
    judge: Without calibration.
    verifier: Draws and grades continuations.
    replier: Judges in words, as the paper does: 1 for enough, 0 for not.
    num_cuts: Of each trace, beside the chosen one.
    k: Continuations of each.
    reply_limit: Tokens that a prompt may have for a reply; longer ones get
      none, which their rows say.
  """
  lengths = {
      r.trace.id: places(r.num_cuts, chosen.get(r.trace.id), num_cuts)
      for r in readings
  }
  meter = _Meter()
  with meter.of('label', judge):
    labels = _ask(judge, readings, lengths)
  with meter.of('prior', judge):
    empty = _ask(judge, readings, {name: [0] for name in lengths})
  with meter.of('isotonic', judge):
    every = {r.trace.id: range(1, r.num_cuts + 1) for r in readings}
    curves = _ask(judge, readings, every)
  with meter.of('reply', replier):
    fit = {
        r.trace.id: replier.read(r.trace, reply_limit).num_cuts
        for r in readings
    }
    roomy = {
        name: [n for n in some if n <= fit[name]]
        for name, some in lengths.items()
    }
    replies = _ask(replier, readings, roomy)
  cuts = [(r.trace, n) for r in readings for n in lengths[r.trace.id]]
  with meter.of('rollouts', verifier):
    # Not the draws by which a verified cut was chosen: it would judge itself.
    proofs = verifier.judge(cuts, k, draw='yardstick')
  fitted = {
      name: rules.fit_isotonic([found[n].p_enough for n in sorted(found)])
      for name, found in curves.items()
  }
  rows = [
      {
          'id': trace.id,
          'sentences': n,
          'total_sentences': len(fitted[trace.id]),
          'chosen': n == chosen.get(trace.id),
          **_scores(labels[trace.id][n], empty[trace.id][0]),
          'isotonic': float(fitted[trace.id][n - 1]),
          'reply': _vote(replies[trace.id].get(n)),
          'k': proof.rollouts,
          'passes': proof.passes,
          'label': int(proof.enough),
      }
      for (trace, n), proof in zip(cuts, proofs, strict=True)
      if proof.rollouts
  ]
  total_seconds = sum(meter.seconds.values())
  # The prior is asked beside the label.
  for counts in (meter.tokens, meter.seconds):
    counts['prior'] += counts['label']
  no_room = len(cuts) - len(rows)
  return Measured(
      rows,
      no_room,
      len(readings),
      meter.tokens,
      meter.seconds,
      total_seconds,
  )


_Verdicts = Mapping[int, search_lib.Verdict]  # By length of the prefix.


def _ask(
    judge: Any,
    readings: Sequence[reading_lib.Reading],
    lengths: Mapping[str, Sequence[int]],
) -> dict[str, _Verdicts]:
  """Returns what a judge, of labels or replies, says of some prefixes."""
  begin = lambda reading: search_lib.ask(lengths[reading.trace.id])
  found = judge.search(readings, begin, lambda count: None)
  return {name: each.verdicts for name, each in found.items()}


def _scores(verdict: search_lib.Verdict, empty: search_lib.Verdict) -> Row:
  return {
      'p_enough': verdict.p_enough,
      'margin': verdict.margin,
      'prior': empty.margin,
      'corrected': verdict.margin - empty.margin,
  }


def _vote(reply: search_lib.Verdict | None) -> float | None:
  """Returns 1 for enough, 0 for not, None for no reply."""
  return None if reply is None else float(reply.enough)


class _Meter:
  """Tokens and seconds by name."""

  def __init__(self):
    self.tokens: dict[str, int] = {}
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def of(self, name: str, worker: Any) -> Iterator[None]:
    """Counts what `worker` does meanwhile; it has `num_tokens`."""
    start, tokens = time.monotonic(), worker.num_tokens
    yield
    self.tokens[name] = worker.num_tokens - tokens
    self.seconds[name] = time.monotonic() - start


def facts(measured: Measured, seed: int) -> dict[str, Any]:
  """Returns what a summary says of a measurement."""
  rows = measured.rows
  num = max(measured.num_traces, 1)
  each = lambda name: {
      'tokens_per_trace': round(measured.tokens[name] / num),
      'seconds_per_trace': round(measured.seconds[name] / num, 4),
  }
  early, judged = too_early(rows)
  return {
      'traces': measured.num_traces,
      'cuts': len(rows),
      'no_room': measured.no_room,
      'rollouts': sum(row['k'] for row in rows),
      'passing': _mean([row['label'] for row in rows]),
      'passes': _mean([row['passes'] / max(row['k'], 1) for row in rows]),
      'too_early': early,
      'chosen': judged,
      'seconds': round(measured.total_seconds, 2),
      'judges': {
          **{
              name: {**_auroc(rows, field, seed), **each(name)}
              for name, field in JUDGES.items()
          },
          'rollouts': each('rollouts'),
      },
  }


def _mean(values: Sequence[int | float]) -> float:
  return round(sum(values) / max(len(values), 1), 4)


def too_early(rows: Sequence[Row]) -> tuple[int, int]:
  """Counts chosen cuts that fail while a longer cut passes.

  Returns:
    How many, and of how many chosen cuts.
  """
  passing: dict[str, int] = {}  # The longest cut that passes.
  for row in rows:
    if row['label']:
      name = row['id']
      passing[name] = max(passing.get(name, 0), row['sentences'])
  chosen = [row for row in rows if row['chosen']]
  early = [
      row
      for row in chosen
      if not row['label'] and passing.get(row['id'], 0) > row['sentences']
  ]
  return len(early), len(chosen)


def _auroc(rows: Sequence[Row], field: str, seed: int) -> dict[str, Any]:
  rows = [row for row in rows if row[field] is not None]
  scores = np.array([row[field] for row in rows], np.float64)
  labels = np.array([row['label'] for row in rows], bool)
  names = [row['id'] for row in rows]
  value = auroc(scores, labels)
  low, high = interval(scores, labels, names, seed)
  rounded = lambda x: None if x is None else round(x, 4)
  return {
      'cuts': len(rows),
      'auroc': rounded(value),
      'low': rounded(low),
      'high': rounded(high),
  }


def auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
  """Returns the chance that a success scores above a failure (ties: half).

  None if there are not both.
  """
  good, bad = scores[labels], np.sort(scores[~labels])
  if not len(good) or not len(bad):
    return None
  below = np.searchsorted(bad, good, 'left')
  not_above = np.searchsorted(bad, good, 'right')
  return float((below + not_above).mean() / 2 / len(bad))


def interval(
    scores: np.ndarray, labels: np.ndarray, names: Sequence[str], seed: int
) -> tuple[float | None, float | None]:
  """Returns the middle 95% of AUROC under resampling of traces.

  Cuts of one trace are no independent observations, so whole traces are drawn.

  Args:
    scores: Of each cut.
    labels: Whether it passes.
    names: Its trace.
    seed: Of the draws.
  """
  by_trace: dict[str, list[int]] = {}
  for i, name in enumerate(names):
    by_trace.setdefault(name, []).append(i)
  groups = [np.array(group) for group in by_trace.values()]
  if len(groups) < 2:
    return None, None
  rng, values = np.random.default_rng(seed), []
  for _ in range(_RESAMPLES):
    drawn = rng.integers(0, len(groups), len(groups))
    picked = np.concatenate([groups[i] for i in drawn])
    value = auroc(scores[picked], labels[picked])
    if value is not None:
      values.append(value)
  if not values:
    return None, None
  low, high = np.quantile(values, (0.025, 0.975))
  return float(low), float(high)
