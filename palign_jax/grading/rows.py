"""Samples files, ours and the reference's: read with care, and graded.

A row holds `answer` and `output`, a list of texts.  Grading keeps every field
and every row, also those without output, and adds the reference's `label`,
`passn` and `output_ans`, and ours: `boxed_label`, `how` and `grader`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath

from palign_jax.core import errors, golds, jsonl
from palign_jax.grading import verify

Row = dict[str, Any]


def read(path: epath.PathLike) -> list[Row]:
  """Returns the rows of a samples file, each fit for `grade`.

  Raises:
    DataError: If the file or one of its rows cannot be graded.
  """
  rows = jsonl.read(path)
  ids = set()
  for number, row in enumerate(rows, 1):
    at = f'{path}, row {number}'
    if row.get('answer') is None:
      raise errors.DataError(
          f'{at}: no answer, only {sorted(row)}; put the gold answer into the'
          ' field "answer".'
      )
    golds.normalise(row['answer'], at=at)
    _check_output(row, at)
    if 'id' in row:
      if str(row['id']) in ids:
        raise errors.DataError(
            f'{at}: the id {row["id"]!r} is there twice; put all samples of a'
            ' problem into one row.'
        )
      ids.add(str(row['id']))
  return rows


def _check_output(row: Row, at: str) -> None:
  output = row.get('output')
  if output is None:
    return
  if not isinstance(output, list) or not all(
      isinstance(text, str) for text in output
  ):
    raise errors.DataError(
        f'{at}: "output" is a {type(output).__name__} that is no list of'
        ' strings; write one string for each sample.'
    )
  reasons = row.get('finish_reason')
  if reasons is not None and (
      not isinstance(reasons, list) or len(reasons) != len(output)
  ):
    raise errors.DataError(
        f'{at}: {len(output)} outputs, but "finish_reason" is {reasons!r};'
        ' write one for each.'
    )


def grade(
    rows: Sequence[Mapping[str, Any]],
    grader: verify.Grader,
    *,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Row]:
  """Returns the rows with their grades, in their order.

  Args:
    rows: As `read` returns them.
    grader: Judges the texts.
    advance: Told of each text that is done, twice: as a whole, and its box.

  Returns:
    New rows; of each output `label` and `boxed_label` say 0 or 1, `output_ans`
    the answer as spelled (or None), `how` what the label rests on.
  """
  items = []
  for number, row in enumerate(rows, 1):
    gold = golds.normalise(row['answer'], at=f'row {number}')
    items += [(gold, text) for text in row.get('output') or ()]
  verdicts = iter(grader.grade(items, advance=advance))
  boxed = iter(grader.grade_boxed(items, advance=advance))
  graded = []
  for row in rows:
    texts = row.get('output') or ()
    own = [next(verdicts) for _ in texts]
    labels = [int(verdict.correct) for verdict in own]
    graded.append(
        {
            **row,
            'label': labels,
            'passn': int(any(labels)),
            'output_ans': [verdict.answer for verdict in own],
            'boxed_label': [int(next(boxed).correct) for _ in texts],
            'how': [verdict.how for verdict in own],
            'grader': verify.version(),
        }
    )
  return graded


def num_texts(rows: Sequence[Mapping[str, Any]]) -> int:
  """Returns how often `grade` will call `advance` with 1, or as much."""
  return 2 * sum(len(row.get('output') or ()) for row in rows)
