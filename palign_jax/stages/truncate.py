"""Cuts each trace to the shortest prefix that the student calls sufficient.

Writes truncate/prefixes.jsonl: one row for every trace, always.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from palign_jax.core import parts as parts_lib, progress
from palign_jax.data import traces as traces_lib
from palign_jax.judging import judge as judge_lib, scorer, search
from palign_jax.stages import context as context_lib, settings, teach
from palign_jax.text import prompts, sentences

FILE = 'truncate/prefixes.jsonl'
_LABEL_ROOM = 8  # Tokens of a label, at most.

Row = dict[str, Any]


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  t = context.settings.truncate
  search.find(t.search)
  prompts.judge(context.settings.prompts.judge, '', '')
  context.describe('student')


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes the prefixes and returns the summary."""
  context_lib.require(context, teach.FILE, 'teach')
  traces = traces_lib.read_traces(
      str(context.workdir / teach.FILE), traces_lib.PRESETS['palign']
  )
  clock, judge = context_lib.Clock(), _judge(context)
  compute = context.settings.compute
  with parts_lib.Parts(
      context.workdir / FILE,
      key=lambda row: row['id'],
      max_rows=compute.part_rows,
  ) as parts:
    todo = [trace for trace in traces if trace['id'] not in parts]
    with progress.bar('Judging probes', None) as advance:
      for begin in range(0, len(todo), compute.group):
        for row in _cut(
            context, judge, todo[begin : begin + compute.group], advance
        ):
          parts.add(row)
        parts.flush()
    rows = parts.rows(trace['id'] for trace in traces)
    parts.merge(rows)
  return {
      **_counts(rows),
      'judge_tokens': compute.judge_tokens,
      **clock.rates(judge.num_tokens),
  }


def _judge(context: context_lib.Context) -> judge_lib.Judge:
  s, student = context.settings, context.load('student')
  if s.truncate.verdict == 'label':
    return judge_lib.LabelJudge(
        scorer.Scorer(
            student.params,
            student.model.config,
            mesh=context.mesh,
            dtype=student.dtype,
            max_tokens=s.compute.judge_tokens,
        ),
        student.tokenizer,
        s.prompts.judge,
        threshold=s.truncate.threshold,
        abstain=s.truncate.abstain,
    )
  drawing = settings.Drawing(
      n=1,
      temperature=s.truncate.temperature,
      top_k=0,
      top_p=s.truncate.top_p,
      repetition_penalty=1.0,
      max_tokens=s.truncate.max_tokens,
  )
  return judge_lib.GenerateJudge(
      context.sampler(student, drawing),
      student.tokenizer,
      s.prompts.judge,
      seed=s.seed,
      max_tokens=s.truncate.max_tokens,
  )


def _cut(context, judge, traces: Sequence[Row], advance) -> list[Row]:
  """Returns the row of every trace of a group."""
  t = context.settings.truncate
  limit = context.describe('student').model.max_positions - _room(t)
  cuts, reasons, by_id = {}, {}, {trace['id']: trace for trace in traces}
  for trace in traces:
    name = trace['id']
    ends = sentences.cuts(trace['Long-CoT'], t.splitter)
    fits = _num_fitting(judge, trace, ends, limit) if ends else 0
    if not ends:
      reasons[name] = 'empty_trace'
    elif fits < len(ends) and (t.too_long == 'drop' or not fits):
      reasons[name] = 'too_long'
    cuts[name] = ends, fits

  def ask(probes: Sequence[search.Probe]) -> list[search.Verdict]:
    items = []
    for probe in probes:
      trace, (ends, _) = by_id[probe.trace_id], cuts[probe.trace_id]
      prefix = trace['Long-CoT'][: ends[probe.length - 1]]
      items.append(
          judge_lib.Item(trace['id'], probe.length, trace['question'], prefix)
      )
    return judge(items, advance)

  lengths = {i: fits for i, (_, fits) in cuts.items() if i not in reasons}
  found = search.lockstep(lengths, search.find(t.search), ask)
  rows = []
  for trace in traces:
    ends, _ = cuts[trace['id']]
    if trace['id'] in reasons:
      rows.append(_dropped(trace, ends, reasons[trace['id']], {}))
    else:
      rows.append(_row(trace, ends, found[trace['id']], t))
  return rows


def _room(t: settings.Truncate) -> int:
  return t.max_tokens if t.verdict == 'generate' else _LABEL_ROOM


def _num_fitting(judge, trace: Row, ends: list[int], limit: int) -> int:
  """Returns the number of sentences whose prompt the context holds."""
  text, question = trace['Long-CoT'], trace['question']
  fits = lambda n: len(judge.prompt(question, text[: ends[n - 1]])) <= limit
  low, high = 0, len(ends)
  middle = high
  while low < high:
    if fits(middle):
      low = middle
    else:
      high = middle - 1
    middle = (low + high + 1) // 2
  return low


def _row(trace: Row, ends: list[int], found: search.Found, t) -> Row:
  length, judged, reason = found.cut.length, found.cut.judged, ''
  if length is None:
    reason, judged = 'no_prefix', False
    if t.none_enough == 'drop':
      return _dropped(trace, ends, reason, found.verdicts)
    length = len(ends)
    if t.none_enough == 'most_probable':
      length = max(
          found.verdicts,
          key=lambda n: (found.verdicts[n].p_enough or 0.0, n),
      )
      judged = True
  elif not judged:
    reason = 'never_judged'
  verdict = found.verdicts.get(length)
  end = ends[length - 1]
  return {
      'id': trace['id'],
      'answer': trace['answer'],
      'question': trace['question'],
      'sufficient_reasoning': trace['Long-CoT'][:end],
      'sufficient_sentences': length,
      'total_sentences': len(ends),
      'prefix_ratio': length / len(ends),
      'is_sufficient': bool(verdict and verdict.enough),
      'evaluator_response': verdict.response if verdict else '',
      'p_enough': verdict.p_enough if verdict else None,
      'margin': verdict.margin if verdict else None,
      'judged': judged,
      'abstained': sum(v.abstained for v in found.verdicts.values()),
      'probes': _probes(found.verdicts),
      'prefix_end': end,
      'status': 'kept',
      'reason': reason,
  }


def _probes(verdicts: Mapping[int, search.Verdict]) -> list[Row]:
  return [
      {'sentences': n, 'p_enough': v.p_enough, 'enough': v.enough}
      for n, v in verdicts.items()
  ]


def _dropped(trace: Row, ends: list[int], reason: str, verdicts) -> Row:
  return {
      'id': trace['id'],
      'answer': trace['answer'],
      'question': trace['question'],
      'sufficient_reasoning': '',
      'sufficient_sentences': 0,
      'total_sentences': len(ends),
      'prefix_ratio': 0.0,
      'is_sufficient': False,
      'evaluator_response': '',
      'p_enough': None,
      'margin': None,
      'judged': bool(verdicts),
      'abstained': sum(v.abstained for v in verdicts.values()),
      'probes': _probes(verdicts),
      'prefix_end': 0,
      'status': 'dropped',
      'reason': reason,
  }


def _counts(rows: Sequence[Row]) -> dict[str, Any]:
  margins = [r['margin'] for r in rows if r['margin'] is not None]
  near = sum(abs(margin) < 0.1 for margin in margins)
  kept = [r['prefix_ratio'] for r in rows if r['status'] == 'kept']
  return {
      'traces': len(rows),
      'status': context_lib.count(r['status'] for r in rows),
      'reason': context_lib.count(r['reason'] or 'sufficient' for r in rows),
      'probes': sum(len(r['probes']) for r in rows),
      'abstained': sum(r['abstained'] for r in rows),
      'margin_below_0.1': round(near / max(len(margins), 1), 4),
      'not_monotone': sum(_falls(r['probes']) for r in rows),
      'mean_prefix_ratio': round(sum(kept) / max(len(kept), 1), 4),
  }


def _falls(probes: Sequence[Row]) -> bool:
  """Returns whether a longer prefix was refused than one accepted."""
  said = [p['enough'] for p in sorted(probes, key=lambda p: p['sentences'])]
  return any(a and not b for a, b in zip(said, said[1:], strict=False))
