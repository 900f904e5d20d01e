"""Keeps what reaches the right answer (Eq. 9) and writes it as training rows.

Writes assemble/train.jsonl and assemble/rejected.jsonl.  Every completion and
every prefix that was dropped is in one of the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from palign_jax.core import jsonl, progress
from palign_jax.grading import verify
from palign_jax.stages import align, context as context_lib, truncate, turns
from palign_jax.text import prompts

TRAIN = 'assemble/train.jsonl'
REJECTED = 'assemble/rejected.jsonl'
_CUT_OFF = ('length', 'loop', 'too_long')

Row = dict[str, Any]


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  prompts.answer(context.settings.prompts.answer, '')


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes both files and returns the summary."""
  clock, settings = context_lib.Clock(), context.settings.assemble
  has_prefixes = (context.workdir / truncate.FILE).exists()
  prefixes = align.read(context) if has_prefixes else []
  completions = _completions(context, prefixes)
  dropped = [row for row in prefixes if row.get('status') == 'dropped']
  with verify.Grader(
      num_workers=context.settings.compute.workers, limit_s=settings.limit_s
  ) as grader:
    verdicts = _grade(context, grader, completions)
    right_before = _in_prefix(grader, completions)
  train, rejected, taken, num_before = [], [], set(), 0
  for row, verdict, before in zip(
      completions, verdicts, right_before, strict=True
  ):
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
      **clock.rates(0),
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
    grader: verify.Grader,
    completions: Sequence[Row],
) -> list[verify.Verdict]:
  """Grades what the student ended: Eq. 9."""
  items = [
      (
          row.get('answer'),
          turns.graded(context, row['sufficient_reasoning'], row['output']),
      )
      for row in completions
  ]
  with progress.bar('Grading completions', len(items)) as advance:
    return grader.grade(items, advance=advance)


def _in_prefix(grader: verify.Grader, completions: Sequence[Row]) -> list[bool]:
  """Returns of each whether its prefix ends with the right answer in a box.

  With `prefill` such a completion passes Eq. 9 whatever the student adds, if
  it boxes nothing else.
  """
  verdicts = grader.grade_boxed(
      [(row.get('answer'), row['sufficient_reasoning']) for row in completions]
  )
  return [verdict.correct for verdict in verdicts]


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
