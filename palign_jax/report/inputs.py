"""Reads what a run left in its work directory; whatever is missing is None.

A file that is there but broken is an error that names its line: a report that
quietly leaves rows out would be worse than none.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

from etils import epath

from palign_jax.core import errors, jsonl

STAGES = (
    'teach',
    'truncate',
    'align',
    'assemble',
    'sft',
    'sample',
    'grade',
    'report',
)
MODELS = ('before', 'after')
_DIFFICULTY = ('steps', 'level')  # Fields of a question, by preference.


@dataclasses.dataclass(frozen=True)
class Answer:
  """All that the report needs of one problem's samples.

  Of the texts only the first is kept: 500 problems with 8 long answers each
  would fill the memory of a laptop.
  """

  id: str
  question: str
  gold: str
  first: str
  lengths: tuple[int, ...]  # Characters of every sample.
  labels: tuple[int, ...] | None  # 1 is correct; None before grading.
  difficulty: float | None
  difficulty_name: str


@dataclasses.dataclass(frozen=True)
class Run:
  """One work directory.  A list is None if its file does not exist."""

  name: str
  config: Mapping[str, Any]
  manifest: Mapping[str, Any] | None
  summaries: Mapping[str, Mapping[str, Any]]
  traces: list[jsonl.Row] | None
  prefixes: list[jsonl.Row] | None
  completions: list[jsonl.Row] | None
  train: list[jsonl.Row] | None
  rejected: list[jsonl.Row] | None
  metrics: list[jsonl.Row] | None
  scores: Mapping[str, Any] | None
  answers: Mapping[str, Mapping[str, list[Answer]]]  # Benchmark, then model.


def read(workdir: epath.Path, config: Mapping[str, Any]) -> Run:
  """Reads every file of a run that is there.

  Raises:
    DataError: If a file is there but cannot be read.
  """
  summaries = {s: _object(workdir / s / 'summary.json') for s in STAGES}
  return Run(
      name=workdir.name,
      config=config,
      manifest=_object(workdir / 'manifest.json'),
      summaries={s: v for s, v in summaries.items() if v is not None},
      traces=_rows(workdir / 'teach/traces.jsonl'),
      prefixes=_rows(workdir / 'truncate/prefixes.jsonl'),
      completions=_rows(workdir / 'align/completions.jsonl'),
      train=_rows(workdir / 'assemble/train.jsonl'),
      rejected=_rows(workdir / 'assemble/rejected.jsonl'),
      metrics=_rows(workdir / 'sft/metrics.jsonl'),
      scores=_object(workdir / 'grade/scores.json'),
      answers=_answers(workdir, config),
  )


def _rows(path: epath.Path) -> list[jsonl.Row] | None:
  if not path.exists():
    return None
  if not path.stat().length:  # A run may well reject nothing.
    return []
  return jsonl.read(path)


def _object(path: epath.Path) -> dict[str, Any] | None:
  if not path.exists():
    return None
  try:
    value = json.loads(path.read_text())
  except ValueError as e:
    raise errors.DataError(
        f'{path}: no valid JSON ({e}); run its stage again.'
    ) from e
  if not isinstance(value, dict):
    raise errors.DataError(
        f'{path}: a {type(value).__name__}; it must be one object.'
    )
  return value


def _answers(
    workdir: epath.Path, config: Mapping[str, Any]
) -> dict[str, dict[str, list[Answer]]]:
  """Reads graded samples, or the samples where they are not graded yet."""
  files = {}
  for stage in ('sample', 'grade'):  # The later one wins.
    for model in MODELS:
      for path in sorted((workdir / stage / model).glob('*.jsonl')):
        files[path.name.removesuffix('.jsonl'), model] = path
  known = dict(config.get('benchmarks') or {})
  place = {name: i for i, name in enumerate(known)}
  answers = {}
  for benchmark, model in sorted(
      files, key=lambda key: (place.get(key[0], len(place)), key)
  ):
    levels = _difficulties(known.get(benchmark))
    answers.setdefault(benchmark, {})[model] = [
        _answer(row, i, levels)
        for i, row in enumerate(_rows(files[benchmark, model]) or ())
    ]
  return answers


def _difficulties(file: Any) -> dict[str, jsonl.Row]:
  """Returns a benchmark's own rows by id, where its file is at hand."""
  if not isinstance(file, str) or not epath.Path(file).is_file():
    return {}
  rows = jsonl.read(file) if file.endswith('.jsonl') else []
  return {str(row.get('id', i)): row for i, row in enumerate(rows)}


def _answer(row: jsonl.Row, index: int, levels: Mapping) -> Answer:
  id_ = str(row.get('id', index))
  outputs = row.get('output')
  outputs = outputs if isinstance(outputs, list) else [outputs]
  outputs = [o if isinstance(o, str) else '' for o in outputs]
  labels = row.get('label')
  difficulty, name = None, ''
  for source in (row, levels.get(id_, {})):
    for field in _DIFFICULTY:
      value = source.get(field)
      if difficulty is None and isinstance(value, int | float):
        difficulty, name = float(value), field
  return Answer(
      id=id_,
      question=str(row.get('question', row.get('prompt_ori', ''))),
      gold=str(row.get('answer', '')),
      first=outputs[0] if outputs else '',
      lengths=tuple(map(len, outputs)),
      labels=tuple(map(int, labels)) if isinstance(labels, list) else None,
      difficulty=difficulty,
      difficulty_name=name,
  )
