"""Grades samples files, ours or the reference's, and prints their scores.

    python -m palign_jax.grade X.jsonl [Y.jsonl ...]

A row holds `answer` and `output` (a list of texts).  Each file X.jsonl gets an
X-graded.jsonl beside it, with every row and field of X and the grades added.
Needs no accelerator and no JAX.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import sys
from typing import Any

from etils import epath
import rich.console
import rich.table

from palign_jax.core import errors, jsonl, progress
from palign_jax.grading import rows as samples, scores, verify

_BOOTSTRAP = scores.Bootstrap(num_resamples=10_000, seed=0)


def main(argv: Sequence[str] | None = None) -> int:
  """Grades the files that the command line names; returns the exit code."""
  args = _parser().parse_args(argv)
  try:
    # All are read before the first is graded: a mistake shows at once.
    files = {path: samples.read(path) for path in map(epath.Path, args.files)}
    graded = {}
    with verify.Grader(
        num_workers=args.workers, limit_s=args.limit_s
    ) as grader:
      for path, rows in files.items():
        with progress.bar(path.name, samples.num_texts(rows)) as advance:
          graded[path] = samples.grade(rows, grader, advance=advance)
        jsonl.write(_graded_path(path), graded[path])
    _print(files, graded)
  except (errors.PalignError, OSError) as e:
    print(f'error: {errors.line(e)}', file=sys.stderr)
    return 1
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m palign_jax.grade',
      description='Grades samples files and prints their scores.',
  )
  parser.add_argument('files', nargs='+', metavar='FILE', help='JSON Lines')
  parser.add_argument(
      '--workers',
      type=_positive,
      default=os.cpu_count() or 1,
      help='processes (default: one for each core)',
  )
  parser.add_argument(
      '--limit_s',
      type=_positive,
      default=10,
      help='seconds for one answer (default: 10)',
  )
  return parser


def _positive(text: str) -> int:
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(f'{text!r} is no positive whole number')
  return int(text)


def _graded_path(path: epath.Path) -> epath.Path:
  return path.with_name(f'{path.stem}-graded.jsonl')


def _print(
    files: Mapping[epath.Path, list[dict[str, Any]]],
    graded: Mapping[epath.Path, list[dict[str, Any]]],
) -> None:
  """Prints a table, a column for each file and a line for each metric."""
  table = rich.table.Table(title='% of problems [95% interval]')
  table.add_column()
  columns = []
  for path, rows in graded.items():
    table.add_column(path.name, justify='right', overflow='fold')
    columns.append(_scores(rows) | _counts(files[path], rows))
  for name in dict.fromkeys(name for column in columns for name in column):
    table.add_row(name, *(column.get(name, '') for column in columns))
  rich.console.Console().print(table)
  for path in graded:
    print(_graded_path(path))


def _scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  result = {}
  for name, score in scores.score(rows, _BOOTSTRAP).items():
    value, low, high = (100 * score[k] for k in ('value', 'low', 'high'))
    result[name] = f'{value:.1f} [{low:.1f}, {high:.1f}]'
  return result


def _counts(
    before: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
  hows = [how for row in rows for how in row['how']]
  counts = {
      'problems': len(rows),
      'samples': scores.num_samples(rows),
      'rows without output': sum(not row['label'] for row in rows),
  }
  for how in ('no_answer', 'unverifiable', 'timeout', 'crash'):
    counts[f'outputs: {how}'] = hows.count(how)
  result = {name: str(count) for name, count in counts.items()}
  # A file of the reference's brings its own labels along.
  pairs = [
      (old, new)
      for was, row in zip(before, rows, strict=True)
      for old, new in zip(was.get('label') or (), row['label'], strict=False)
  ]
  if pairs:
    same = sum(old == new for old, new in pairs)
    result["as the file's own label"] = f'{same} of {len(pairs)}'
  return result


if __name__ == '__main__':
  sys.exit(main())
