"""Keeps what reaches the right answer (Eq. 9) and writes it as training rows.

Writes assemble/train.jsonl and assemble/rejected.jsonl.  Every completion and
every prefix that was dropped is in one of the two.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from palign_jax.core import jsonl, parts as parts_lib
from palign_jax.grading import verify
from palign_jax.stages import align, context as context_lib, truncate, turns
from palign_jax.text import prompts

TRAIN = 'assemble/train.jsonl'
REJECTED = 'assemble/rejected.jsonl'
_VERDICTS = 'assemble/verdicts.jsonl'  # Never written: its parts are.
_CUT_OFF = ('length', 'loop', 'too_long')

Row = dict[str, Any]


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  prompts.answer(context.settings.prompts.answer, '')


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes both files and returns the summary."""
  settings = context.settings.assemble
  has_prefixes = (context.workdir / truncate.FILE).exists()
  prefixes = align.read(context) if has_prefixes else []
  completions = _completions(context, prefixes)
  dropped = [row for row in prefixes if row.get('status') == 'dropped']
  with context_lib.open_parts(
      context, _VERDICTS, lambda row: row['name']
  ) as parts:
    verdicts = _grade(context, parts, completions)
  train, rejected, taken, num_before = [], [], set(), 0
  for row, (verdict, before) in zip(completions, verdicts, strict=True):
    reason = _reason(row, verdict, settings.unverifiable)
    if not reason and settings.keep == 'first' and row['id'] in taken:
      reason = 'surplus'
    out = _train_row(context, row, verdict)
    if reason:
      rejected.append({**out, 'reason': reason})
    else:
      taken.add(row['id'])
      train.append(out)
      num_before += before
  for row in dropped:
    out = _train_row(context, {**row, 'output': ''}, None)
    rejected.append({**out, 'reason': row['reason']})
  if not context.peers.index:
    jsonl.write(context.workdir / REJECTED, rejected)
    jsonl.write(context.workdir / TRAIN, train)
  return {
      'completions': len(completions),
      'dropped_before': len(dropped),
      'train': len(train),
      'verdict': context_lib.count(r['verdict'] for r in train),
      'answer_in_prefix': num_before,
      'rejected': len(rejected),
      'reason': context_lib.count(r['reason'] for r in rejected),
      'grader': verify.version(),
      **context_lib.totals(parts.totals()),
  }


def _completions(
    context: context_lib.Context, prefixes: Sequence[Row]
) -> list[Row]:
  """Returns the completions, ours or the reference's.

  Its src/prefix-alignment.py:31-35 drops id and answer: they are those of the
  prefix to the same question.
  """
  fields = ('question', 'sufficient_reasoning', 'output')
  rows = context_lib.rows(context, align.FILE, 'align', fields)
  by_question = {prefix['question']: prefix for prefix in prefixes}
  found = []
  for number, row in enumerate(rows):
    prefix = by_question.get(row['question'], {})
    name = row.get('id', prefix.get('id', number))
    answer = row.get('answer', prefix.get('answer'))
    found.append({**row, 'id': str(name), 'answer': answer})
  return found


def _grade(
    context: context_lib.Context,
    parts: parts_lib.Parts,
    completions: Sequence[Row],
) -> list[tuple[verify.Verdict, bool]]:
  """Grades what the student ended, each host its share: Eq. 9.

  Returns:
    Of each its verdict, and whether its prefix ends with the right answer in a
    box: with `prefill` it then passes whatever the student adds, if it boxes
    nothing else.
  """
  items = {}
  for number, row in enumerate(completions):
    prefix = row['sufficient_reasoning']
    text = turns.graded(context, prefix, row['output'])
    item = row.get('answer'), text, prefix
    items[parts_lib.name(number, item)] = item
  with verify.Grader(
      num_workers=context.settings.compute.workers,
      limit_s=context.settings.assemble.limit_s,
  ) as grader:
    for names, advance in context_lib.chunks(
        context, parts, list(items), 'Grading completions'
    ):
      some = [items[name] for name in names]
      found = grader.grade([(a, text) for a, text, _ in some], advance=advance)
      boxed = grader.grade_boxed([(a, prefix) for a, _, prefix in some])
      for name, verdict, box in zip(names, found, boxed, strict=True):
        row = {'name': name, **dataclasses.asdict(verdict)}
        parts.add({**row, 'right_before': box.correct})
  parts.gather()
  return [
      (verify.Verdict(r['correct'], r['answer'], r['how']), r['right_before'])
      for r in parts.rows(items)
  ]


def _reason(row: Row, verdict: verify.Verdict, unverifiable: str) -> str:
  """Returns why a completion is no training data; '' if it is."""
  if row.get('finish_reason') in _CUT_OFF:
    return row['finish_reason']
  if verdict.how == 'unverifiable':
    return '' if unverifiable == 'keep' else 'unverifiable'
  return '' if verdict.correct else 'wrong'


def _train_row(
    context: context_lib.Context, row: Row, verdict: verify.Verdict | None
) -> Row:
  s = context.settings
  name = 'none'
  if verdict is not None:
    name = 'correct' if verdict.correct else 'wrong'
    if verdict.how == 'unverifiable':
      name = 'unverifiable'
  prefix, output = row['sufficient_reasoning'], row['output']
  return {
      'id': row['id'],
      'instruction': prompts.answer(s.prompts.answer, '').strip(),
      'input': row['question'],
      'output': f'{s.assemble.begin}{prefix}{s.assemble.end}{output}',
      'answer': row.get('answer'),
      'sample': row.get('sample', 0),
      'verdict': name,
      'how': verdict.how if verdict else '',
      'grader': verify.version(),
  }
