"""Grades the samples and computes the scores; needs no accelerator.

Writes grade/<model>/<benchmark>.jsonl and grade/scores.json.
"""

from collections.abc import Mapping
import json
from typing import Any

from palign_jax.core import jsonl, parts as parts_lib
from palign_jax.grading import rows as rows_lib, scores, verify
from palign_jax.stages import context as context_lib, sample

SCORES = 'grade/scores.json'


def check(context: context_lib.Context) -> None:
  """Nothing can be wrong with the config that `settings` has not seen."""
  del context


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Grades every samples file that is there and returns the summary."""
  settings, tallies = context.settings, []
  graded: dict[str, dict[str, list]] = {}
  for benchmark in settings.benchmarks:
    for model in sample.MODELS:
      source = sample.file(model, benchmark)
      context_lib.require(context, source, 'sample')
      name = sample.file(model, benchmark, 'grade')
      target = context.workdir / name
      if not target.exists():
        _grade(context, source, name)
      tallies.append(parts_lib.totals(target))
      graded.setdefault(benchmark, {})[model] = jsonl.read(target)
  bootstrap = scores.Bootstrap(settings.grade.resamples, settings.seed)
  table = {}
  for benchmark, models in graded.items():
    table[benchmark] = {
        model: scores.score(rows, bootstrap) for model, rows in models.items()
    }
    table[benchmark]['after-before'] = scores.paired(
        models['before'], models['after'], bootstrap
    )
  if not context.peers.index:
    text = json.dumps(table, indent=2) + '\n'
    jsonl.write_text(context.workdir / SCORES, text)
  hows = [
      how
      for models in graded.values()
      for rows in models.values()
      for row in rows
      for how in row['how']
  ]
  return {
      'graded': len(hows),
      'how': context_lib.count(hows),
      'grader': verify.version(),
      **context_lib.totals(parts_lib.add_up(tallies)),
  }


def _grade(context: context_lib.Context, source: str, target: str) -> None:
  """Grades one file, each host its share of the rows."""
  rows = rows_lib.read(context.workdir / source)
  named = {parts_lib.name(i, row): row for i, row in enumerate(rows)}
  settings = context.settings
  with (
      context_lib.open_parts(context, target, lambda r: r['name']) as parts,
      verify.Grader(
          num_workers=settings.compute.workers, limit_s=settings.grade.limit_s
      ) as grader,
  ):
    for names, advance in context_lib.chunks(
        context, parts, list(named), f'Grading {source}'
    ):
      graded = rows_lib.grade([named[name] for name in names], grader)
      for name, row in zip(names, graded, strict=True):
        parts.add({'name': name, 'row': row})
      advance(len(names))
    parts.gather()
    parts.merge([row['row'] for row in parts.rows(named)])
