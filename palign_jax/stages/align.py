"""Lets the student continue each prefix to an answer.

Writes align/completions.jsonl: n rows for every prefix that was kept.
"""

from collections.abc import Mapping
from typing import Any

from palign_jax.core import errors, peers as peers_lib
from palign_jax.data import ids
from palign_jax.stages import context as context_lib, truncate, turns

FILE = 'align/completions.jsonl'


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  turns.check(context)
  context.check_stop('align', context.settings.align.stop, 'student')
  context.check_rows()


def read(context: context_lib.Context) -> list[dict[str, Any]]:
  """Returns the prefixes, ours or the reference's.

  Raises:
    DataError: If a row lacks a field, or has the id of another.
  """
  fields = ('question', 'sufficient_reasoning')
  rows = context_lib.rows(context, truncate.FILE, 'truncate', fields)
  path = context.workdir / truncate.FILE
  if not rows:
    raise errors.DataError(f'{path}: the file has no rows.')
  names = ids.assign(rows, 'id', source=str(path))
  return [row | {'id': name} for row, name in zip(rows, names, strict=True)]


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes the completions and returns the summary."""
  a = context.settings.align
  kept = [r for r in read(context) if r.get('status', 'kept') == 'kept']
  name = lambda id_, sample: f'{id_}/{sample}'
  with context_lib.open_parts(
      context, FILE, lambda row: name(row['id'], row['sample'])
  ) as parts:
    student = context.load('student')
    asks, by_id = [], {row['id']: row for row in kept}
    for row in peers_lib.share(context.peers, kept):
      missing = [i for i in range(a.n) if name(row['id'], i) not in parts]
      if missing:
        question, prefix = row['question'], row['sufficient_reasoning']
        text = turns.prompt(context, question, prefix)
        key = ('align', row['id'])
        asks += [
            context_lib.ask(student, row['id'], i, text, key) for i in missing
        ]
    for reply in context.sample(student, a, asks, 'Student continues'):
      row = by_id[reply.ask.id]
      parts.add(
          {
              'id': row['id'],
              'question': row['question'],
              'answer': row.get('answer'),
              'sufficient_reasoning': row['sufficient_reasoning'],
              'prompt': reply.ask.prompt,
              'output': reply.text,
              'finish_reason': reply.finish_reason,
              'sample': reply.ask.sample,
          },
          tokens=reply.num_tokens,
      )
    parts.gather()
    rows = parts.rows(name(r['id'], i) for r in kept for i in range(a.n))
    parts.merge(rows)
  return {
      'prefixes': len(kept),
      'completions': len(rows),
      'finish_reason': context_lib.count(r['finish_reason'] for r in rows),
      'num_rows': context.settings.compute.num_rows,
      **context_lib.totals(parts.totals()),
  }
