"""The rows of truncate/prefixes.jsonl, and what is counted of them."""

from collections.abc import Sequence
import itertools
from typing import Any

from palign_jax.judging import (
    calibration,
    reading as reading_lib,
    rules,
    search,
    verified,
)
from palign_jax.stages import context as context_lib, settings

Row = dict[str, Any]
# Reasons of rows of which no prefix suffices: none was proven enough, or the
# context had no room for a continuation of any that was to be proven.
_NONE_ENOUGH = ('no_prefix', 'no_room')


def kept(
    trace: Row,
    reading: reading_lib.Reading,
    found: search.Found,
    t: settings.Truncate,
    threshold: float,
) -> Row:
  """Returns the row of a trace that was searched.

  Args:
    trace: From the file.
    reading: As the judge has read it.
    found: What the search found.
    t: Says what to do if that is nothing.
    threshold: Of p_enough, for rules.
  """
  ends = reading.trace.ends
  length, judged, reason = found.cut.length, found.cut.judged, ''
  is_sufficient = length is not None and judged
  if length is None:
    reason, judged = _unproven(found), False
    if t.none_enough == 'drop':
      return dropped(trace, ends, reason, found)
    length = reading.num_cuts  # The whole, or what the context holds.
    if t.none_enough == 'most_probable':
      length, judged = _most_probable(found), True
  elif not judged:
    reason = 'never_judged'
  elif t.verdict == 'verified' and not found.proofs:
    reason = 'unverifiable'
  verdict, end = found.verdicts.get(length), ends[length - 1]
  return {
      **_named(trace),
      'sufficient_reasoning': trace['Long-CoT'][:end],
      'sufficient_sentences': length,
      'total_sentences': len(ends),
      'prefix_ratio': length / len(ends),
      'is_sufficient': is_sufficient,
      'evaluator_response': verdict.response if verdict else '',
      'p_enough': verdict.p_enough if verdict else None,
      'margin': verdict.margin if verdict else None,
      'judged': judged,
      **_judged(found, t, threshold),
      'prefix_end': end,
      'status': 'kept',
      'reason': reason,
  }


def _unproven(found: search.Found) -> str:
  """Returns why no prefix of a trace suffices."""
  drew = any(proof.rollouts for proof in found.proofs.values())
  return 'no_room' if found.proofs and not drew else 'no_prefix'


def is_chosen(row: Row) -> bool:
  """Returns whether the cut was chosen: not if none was found enough."""
  return row['status'] == 'kept' and row['reason'] not in _NONE_ENOUGH


def _most_probable(found: search.Found) -> int:
  """Returns the cut that most continuations prove, or else the labels."""
  if found.proofs:
    return max(found.proofs, key=lambda n: (found.proofs[n].passes, n))
  return verified.most_probable(found.verdicts)


def dropped(
    trace: Row,
    ends: Sequence[int],
    reason: str,
    found: search.Found | None = None,
) -> Row:
  """Returns the row of a trace of which nothing is kept."""
  found = found or search.Found(search.Cut(None), {})
  return {
      **_named(trace),
      'sufficient_reasoning': '',
      'sufficient_sentences': 0,
      'total_sentences': len(ends),
      'prefix_ratio': 0.0,
      'is_sufficient': False,
      'evaluator_response': '',
      'p_enough': None,
      'margin': None,
      'judged': bool(found.verdicts),
      **_judged(found, None, 0.0),
      'prefix_end': 0,
      'status': 'dropped',
      'reason': reason,
  }


def _named(trace: Row) -> Row:
  return {name: trace[name] for name in ('id', 'answer', 'question')}


def _judged(
    found: search.Found, t: settings.Truncate | None, threshold: float
) -> Row:
  """Returns what was asked on the way."""
  row = {
      'abstained': sum(v.abstained for v in found.verdicts.values()),
      'probes': [
          {
              'sentences': n,
              'p_enough': v.p_enough,
              'margin': v.margin,
              'enough': v.enough,
          }
          for n, v in found.verdicts.items()
      ],
  }
  proofs = found.proofs or {
      n: v for n, v in found.verdicts.items() if v.rollouts
  }
  if proofs:
    row['rollouts'] = [
        {'sentences': n, 'passes': v.passes, 'k': v.rollouts}
        for n, v in proofs.items()
        if v.rollouts
    ]
  curve = [found.verdicts[n] for n in sorted(found.verdicts)]
  if t and t.search == 'curve' and t.verdict != 'generate':
    row['cuts'] = {
        name: rules.find(name, num=t.stable, threshold=threshold)(curve)
        for name in rules.RULES
    }
  return row


def counts(
    rows: Sequence[Row], t: settings.Truncate, threshold: float
) -> dict[str, Any]:
  """Returns what the summary says of all rows; for `threshold` see `kept`."""
  probes = [probe for row in rows for probe in row['probes']]
  margins = [p['margin'] for p in probes if p['margin'] is not None]
  edge = calibration.log_odds(threshold)
  near = sum(abs(margin - edge) < 0.1 for margin in margins)
  ratios = [r['prefix_ratio'] for r in rows if r['status'] == 'kept']
  proofs = [p for r in rows for p in r.get('rollouts', ())]
  facts = {
      'traces': len(rows),
      'status': context_lib.count(r['status'] for r in rows),
      'reason': context_lib.count(r['reason'] or 'sufficient' for r in rows),
      'probes': len(probes),
      'abstained': sum(r['abstained'] for r in rows),
      'within_0.1_nat': round(near / max(len(margins), 1), 4),
      'mean_prefix_ratio': round(sum(ratios) / max(len(ratios), 1), 4),
  }
  if t.search == 'curve':
    facts |= _monotonicity(rows)
  if proofs:
    facts['proofs'] = {
        'cuts': len(proofs),
        'rollouts': sum(p['k'] for p in proofs),
        'passes': sum(p['passes'] for p in proofs),
    }
  return facts


def _monotonicity(rows: Sequence[Row]) -> Row:
  """Counts prefixes that are refused, each right after one that is accepted.

  Only a curve sees them: a search that halves looks where there are none.
  """
  falls = pairs = traces = 0
  for row in rows:
    probes = sorted(row['probes'], key=lambda probe: probe['sentences'])
    said = [probe['enough'] for probe in probes]
    here = sum(a and not b for a, b in itertools.pairwise(said))
    falls, traces = falls + here, traces + bool(here)
    pairs += max(len(said) - 1, 0)
  judged = sum(bool(row['probes']) for row in rows)
  return {
      'not_monotone': traces,
      'violations': round(falls / max(pairs, 1), 4),
      'traces_with_violations': round(traces / max(judged, 1), 4),
  }
