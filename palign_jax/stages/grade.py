"""Grades the samples and computes the scores; needs no accelerator.

Writes grade/<model>/<benchmark>.jsonl and grade/scores.json.
"""

from collections.abc import Mapping
import json
from typing import Any

from palign_jax.core import jsonl, progress
from palign_jax.grading import rows as rows_lib, scores, verify
from palign_jax.stages import context as context_lib, sample

SCORES = 'grade/scores.json'


def check(context: context_lib.Context) -> None:
  """Nothing can be wrong with the config that `settings` has not seen."""
  del context


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Grades every samples file that is there and returns the summary."""
  clock, settings = context_lib.Clock(), context.settings
  graded: dict[str, dict[str, list]] = {}
  for benchmark in settings.benchmarks:
    for model in sample.MODELS:
      source = sample.file(model, benchmark)
      context_lib.require(context, source, 'sample')
      target = context.workdir / sample.file(model, benchmark, 'grade')
      if not target.exists():
        jsonl.write(target, _grade(context, source))
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
      **clock.rates(0),
  }


def _grade(context: context_lib.Context, source: str):
  rows = rows_lib.read(context.workdir / source)
  settings = context.settings
  with (
      verify.Grader(
          num_workers=settings.compute.workers, limit_s=settings.grade.limit_s
      ) as grader,
      progress.bar(f'Grading {source}', rows_lib.num_texts(rows)) as advance,
  ):
    return rows_lib.grade(rows, grader, advance=advance)
