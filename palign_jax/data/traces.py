"""Ready traces of a teacher, from any source, under our names."""

from collections.abc import Mapping
import dataclasses
import reprlib
from typing import Any

from palign_jax.core import config, errors, golds
from palign_jax.data import ids, sources


@dataclasses.dataclass(frozen=True)
class Fields:
  """What a source calls the parts of a trace.

  Attributes:
    question: Holds the problem.
    answer: Holds the gold answer; '' where the source has none.
    trace: Holds the chain of thought.
    id: Names the row; '' numbers the rows from 0.
  """

  question: str
  answer: str
  trace: str
  id: str


PRESETS = {
    # The reference's own files, and ours.
    'palign': Fields('question', 'answer', 'Long-CoT', 'id'),
    # simplescaling/s1K and s1K-1.1; the second has DeepSeek-R1's traces.
    's1k': Fields('question', 'solution', 'deepseek_thinking_trajectory', ''),
    's1k-1.1': Fields(
        'question', 'solution', 'deepseek_thinking_trajectory', ''
    ),
}


def fields(choice: str | Mapping[str, Any], *, at: str) -> Fields:
  """Returns a preset by its name, or the mapping that a config spells out.

  Args:
    choice: A name in `PRESETS`, or {'question', 'answer', 'trace', 'id'}.
    at: Its place in the config, for messages.

  Raises:
    ConfigError: If there is no such preset, or a field is unknown or missing.
  """
  if not isinstance(choice, str):
    return config.build(Fields, choice, at=at)
  if choice not in PRESETS:
    raise errors.ConfigError(
        f'{at}: no preset {choice!r}; there are {sorted(PRESETS)}, or name the'
        ' fields: question, answer, trace, id.'
    )
  return PRESETS[choice]


def read_traces(source: str, names: Fields) -> list[dict[str, Any]]:
  """Returns the traces of a source as {'id', 'question', 'answer', 'Long-CoT'}.

  An empty trace is no error here: `truncate` writes a row for it and counts it.

  Args:
    source: As `sources.open_source` takes it.
    names: What the source calls its fields.

  Returns:
    The rows in order; `answer` normalised, None where the source has none.

  Raises:
    DataError: If the source is empty, or a row lacks a field or has something
      other than text in it.
  """
  rows = list(sources.open_source(source))
  if not rows:
    raise errors.DataError(f'{source}: there are no rows.')
  result = []
  for number, (name, row) in enumerate(
      zip(ids.assign(rows, names.id, source=source), rows, strict=True), 1
  ):
    at = f'{source}, row {number}'
    question = _text(row, names.question, at)
    if not question.strip():
      raise errors.DataError(
          f'{at}: the {names.question!r} is empty; drop the row or fill it.'
      )
    answer = _get(row, names.answer, at) if names.answer else None
    if answer is not None:
      answer = golds.normalise(answer, at=f'{at}, {names.answer!r}')
    result.append(
        {
            'id': name,
            'question': question,
            'answer': answer,
            'Long-CoT': _text(row, names.trace, at),
        }
    )
  return result


def _text(row: Mapping[str, Any], field: str, at: str) -> str:
  value = _get(row, field, at)
  if not isinstance(value, str):
    raise errors.DataError(
        f'{at}: the {field!r} is {reprlib.repr(value)}'
        f' ({type(value).__name__}); it must be text.'
    )
  return value


def _get(row: Mapping[str, Any], field: str, at: str) -> Any:
  if field not in row:
    raise errors.DataError(
        f'{at}: no {field!r} in {sorted(row)}; correct the row, or the fields'
        ' in the config.'
    )
  return row[field]
