"""Files of questions, with the gold answers that benchmarks have.

Field names are found as the reference finds them (P-ALIGN, src/test.py); rows
that it passes over in silence are errors here.

A file is named by its path; `FILE#FIELD` takes ids from another field than
`id`, and `FILE#` numbers the rows.  (The reference's own AMC12 file has the ids
of two years in it, each from 0.)
"""

import reprlib
from typing import Any

from etils import epath

from palign_jax.core import errors, golds, jsonl
from palign_jax.data import ids

QUESTION_FIELDS = ('problem', 'question', 'input', 'content')
ANSWER_FIELDS = ('answer', 'target', 'solution', 'ground_truth')


def locate(file: epath.PathLike) -> tuple[epath.Path, str]:
  """Returns the path of a question file, and its field of ids ('' for none)."""
  path, hash_sign, field = str(file).rpartition('#')
  if not hash_sign or '/' in field:
    return epath.Path(file), 'id'
  return epath.Path(path), field


def read_questions(
    file: epath.PathLike, *, needs_answer: bool
) -> list[dict[str, Any]]:
  """Returns the rows of a question file as {'id', 'question', 'answer', ...}.

  Args:
    file: A JSON Lines file, as the module describes it.
    needs_answer: Whether a row without an answer is an error, as it is in a
      benchmark.

  Returns:
    The rows in order: `id` as text, `question`, `answer` normalised (None where
    there is none), and the fields that are none of these as they are.

  Raises:
    DataError: If the file or one of its rows cannot be used.
  """
  path, field = locate(file)
  rows = jsonl.read(path)
  names = ids.assign(rows, field, source=str(path))
  result = []
  for number, (name, row) in enumerate(zip(names, rows, strict=True), 1):
    at = f'{path}, row {number}'
    question = _first(row, QUESTION_FIELDS)
    if question is None:
      raise errors.DataError(
          f'{at}: no question in {sorted(row)}; name the field one of'
          f' {list(QUESTION_FIELDS)}.'
      )
    text = row[question]
    if not isinstance(text, str) or not text.strip():
      raise errors.DataError(
          f'{at}: the {question!r} is {reprlib.repr(text)}; it must be text,'
          ' and not empty.'
      )
    answer = _first(row, ANSWER_FIELDS)
    gold = None if answer is None else row[answer]
    if gold is not None:
      gold = golds.normalise(gold, at=f'{at}, {answer!r}')
    if needs_answer and not gold:
      raise errors.DataError(
          f'{at}: no answer in {sorted(row)}; a benchmark needs one in every'
          f' row, in the first of {list(ANSWER_FIELDS)} that is there.'
      )
    others = {k: v for k, v in row.items() if k not in (question, answer)}
    result.append({**others, 'id': name, 'question': text, 'answer': gold})
  return result


def _first(row: dict[str, Any], fields: tuple[str, ...]) -> str | None:
  return next((field for field in fields if field in row), None)
