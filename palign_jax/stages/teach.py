"""Gets a long trace for every question: the teacher's, or ready ones.

Writes teach/traces.jsonl.
"""

from collections.abc import Mapping
from typing import Any

from palign_jax.core import errors, parts as parts_lib, peers as peers_lib
from palign_jax.data import questions as questions_lib, traces as traces_lib
from palign_jax.stages import context as context_lib
from palign_jax.text import prompts

FILE = 'teach/traces.jsonl'


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  t = context.settings.teach
  if t.traces:
    _ready(context)
  elif t.questions:
    _questions(context)
    prompts.answer(context.settings.prompts.answer, '')
    context.check_stop('teach', t.stop, 'teacher')
    context.check_rows()
  else:
    raise errors.ConfigError(
        'config.teach: neither traces nor questions are set; set'
        ' config.teach.traces to ready traces, or config.teach.questions and'
        ' config.teacher.path.'
    )


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes the traces and returns the summary."""
  if context.settings.teach.traces:
    clock, rows = context_lib.Clock(), _ready(context)
    with _parts(context) as parts:
      parts.merge(rows)
    return {'traces': len(rows), **clock.rates(0)}
  rows = _questions(context)
  with _parts(context) as parts:
    _sample(context, rows, parts)
    parts.gather()
    rows = parts.rows(row['id'] for row in rows)
    parts.merge(rows)
  return {
      'traces': len(rows),
      'finish_reason': context_lib.count(r['finish_reason'] for r in rows),
      'num_rows': context.settings.compute.num_rows,
      **context_lib.totals(parts.totals()),
  }


def _parts(context: context_lib.Context) -> parts_lib.Parts:
  return context_lib.open_parts(context, FILE, lambda row: row['id'])


def _ready(context: context_lib.Context) -> list[dict[str, Any]]:
  t = context.settings.teach
  fields = traces_lib.fields(t.fields or 'palign', at='config.teach.fields')
  rows = traces_lib.read_traces(t.traces, fields)
  return rows[: t.limit] if t.limit else rows


def _questions(context: context_lib.Context) -> list[dict[str, Any]]:
  t = context.settings.teach
  rows = questions_lib.read_questions(t.questions, needs_answer=False)
  return rows[: t.limit] if t.limit else rows


def _sample(context, rows, parts) -> None:
  """Samples a trace for every question that has none yet."""
  teacher = context.load('teacher')
  asks, by_id = [], {row['id']: row for row in rows}
  for row in peers_lib.share(context.peers, rows):
    if row['id'] not in parts:
      user = prompts.answer(context.settings.prompts.answer, row['question'])
      prompt = teacher.tokenizer.chat.prompt(user)
      key = ('teach', row['id'])
      asks.append(context_lib.ask(teacher, row['id'], 0, prompt, key))
  for reply in context.sample(
      teacher, context.settings.teach, asks, 'Teacher writes'
  ):
    row = by_id[reply.ask.id]
    parts.add(
        {
            'id': row['id'],
            'question': row['question'],
            'answer': row['answer'],
            'Long-CoT': reply.text,
            'finish_reason': reply.finish_reason,
        },
        tokens=reply.num_tokens,
    )
