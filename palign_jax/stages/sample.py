"""Samples answers to the benchmarks, from the student before and after.

Writes sample/<model>/<benchmark>.jsonl.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from palign_jax.core import (
    errors,
    jsonl,
    parts as parts_lib,
    peers as peers_lib,
)
from palign_jax.data import questions as questions_lib
from palign_jax.stages import context as context_lib, sft
from palign_jax.text import prompts

MODELS = ('before', 'after')

Row = dict[str, Any]


def file(model: str, benchmark: str, stage: str = 'sample') -> str:
  """Returns where the rows of a model and benchmark stand in the workdir."""
  return f'{stage}/{model}/{benchmark}.jsonl'


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  if not context.settings.benchmarks:
    raise errors.ConfigError(
        'config.benchmarks is empty; give names and question files.'
    )
  for path in context.settings.benchmarks.values():
    questions_lib.read_questions(path, needs_answer=True)
  prompts.answer(context.settings.prompts.answer, '')
  context.check_stop('sample', context.settings.sample.stop, 'student')
  context.check_rows()


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes the samples and returns the summary."""
  context_lib.require(context, sft.EXPORT, 'sft')
  facts, tallies = {}, []
  for model in MODELS:
    student = None
    for benchmark, path in context.settings.benchmarks.items():
      target = context.workdir / file(model, benchmark)
      if target.exists():
        facts[f'{model}/{benchmark}'] = _reasons(jsonl.read(target))
        tallies.append(parts_lib.totals(target))
        continue
      if student is None:
        student = (
            context.load('student') if model == 'before' else context.trained()
        )
      problems = questions_lib.read_questions(path, needs_answer=True)
      reasons, tally = _sample(context, student, model, benchmark, problems)
      facts[f'{model}/{benchmark}'] = reasons
      tallies.append(tally)
  return {
      'samples': facts,
      'num_rows': context.settings.compute.num_rows,
      **context_lib.totals(parts_lib.add_up(tallies)),
  }


def _sample(context, student, model: str, benchmark: str, problems: list[Row]):
  """Samples one file; returns counts by finish reason, and what it took."""
  drawing = context.settings.sample
  name = lambda id_, sample: f'{id_}/{sample}'
  with context_lib.open_parts(
      context,
      file(model, benchmark),
      lambda row: name(row['id'], row['sample']),
  ) as parts:
    asks = []
    for row in peers_lib.share(context.peers, problems):
      missing = [i for i in range(drawing.n) if name(row['id'], i) not in parts]
      if missing:
        user = prompts.answer(context.settings.prompts.answer, row['question'])
        prompt = student.tokenizer.chat.prompt(user)
        # Both models draw with the same keys: their difference is theirs.
        key = ('sample', benchmark, row['id'])
        asks += [
            context_lib.ask(student, row['id'], i, prompt, key) for i in missing
        ]
    for reply in context.sample(
        student, drawing, asks, f'Student {model}, {benchmark}'
    ):
      parts.add(
          {
              'id': reply.ask.id,
              'sample': reply.ask.sample,
              'output': reply.text,
              'finish_reason': reply.finish_reason,
          },
          tokens=reply.num_tokens,
      )
    parts.gather()
    rows = [_row(context, p, parts, drawing.n) for p in problems]
    parts.merge(rows)
  return _reasons(rows), parts.totals()


def _reasons(rows: Sequence[Row]) -> dict[str, int]:
  """Returns how often samples ended for each reason."""
  return context_lib.count(x for row in rows for x in row['finish_reason'])


def _row(context, problem: Row, parts: parts_lib.Parts, n: int) -> Row:
  samples = parts.rows(f'{problem["id"]}/{i}' for i in range(n))
  user = prompts.answer(context.settings.prompts.answer, problem['question'])
  return {
      **problem,
      'prompt_ori': user,
      'output': [sample['output'] for sample in samples],
      'finish_reason': [sample['finish_reason'] for sample in samples],
  }
