"""Rows of results: what a measurement says, as a table and as JSON lines."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import json
import os
import pathlib
from typing import Any

import rich.console
import rich.table

from benchmarks import harness
from palign_jax.core import command

TRUNK = 'trunk'  # The case by which `times_trunk` is counted.
OURS = 'ours'
Row = dict[str, Any]


def make(
    bench: str, measured: Sequence[harness.Measured], extra: Mapping[str, Any]
) -> list[Row]:
  """Returns a row per measurement.

  Facts of a run that are the rows' own: `tokens` that it was asked for, which
  tokens_per_s counts, `useful`, and `note`.  As some systems are given fewer
  traces, ratios are those of tokens_per_s.

  Args:
    bench: Name of the benchmark.
    measured: All of the same machine and model.
    extra: More fields of every row.
  """
  rate = lambda m: m.facts['tokens'] / m.seconds
  trunks = [rate(m) for m in measured if m.spec.case == TRUNK]
  ours = {m.spec.case: rate(m) for m in measured if m.spec.system == OURS}
  rows = []
  for m in measured:
    case, facts = m.spec.case, dict(m.facts)
    facts.pop('probes', None)
    tokens = facts.pop('tokens')
    rows.append(
        {
            'bench': bench,
            'case': case,
            'system': m.spec.system,
            'seconds': round(m.seconds, 4),
            'tokens_per_s': round(rate(m), 1),
            'times_trunk': _ratio(max(trunks) if trunks else None, rate(m)),
            'speedup': _ratio(ours.get(case), rate(m)),
            'useful': facts.pop('useful', None),
            'peak_bytes': m.peak_bytes,
            **extra,
            'tokens': tokens,
            'warm_up_s': round(m.warm_s, 2),
            'samples': [round(x, 4) for x in m.samples],
            **facts,
        }
    )
  return rows


def _ratio(one: float | None, other: float) -> float | None:
  return None if one is None else round(one / other, 3)


def report(
    run: Callable[[argparse.Namespace], list[Row]], args: argparse.Namespace
) -> None:
  """Measures, prints the rows, and writes them with --json."""
  # Several processes share the memory of a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  command.quiet_libraries()
  with command.one_line_errors():
    rows = run(args)
    show(rows)
    write(rows, args.json)


def show(rows: Sequence[Row]) -> None:
  """Prints a table, and the rows as JSON lines."""
  table = rich.table.Table(title=_title(rows[0]))
  columns = ('case', 'system', 'seconds', 'tokens/s', 'x trunk', 'ours is')
  for name in columns + ('useful', 'peak GiB', 'warm-up s', 'note'):
    left = name in ('case', 'system', 'note')
    table.add_column(name, justify='left' if left else 'right')
  for row in rows:
    table.add_row(
        row['case'],
        row['system'],
        f'{row["seconds"]:.3f}',
        f'{row["tokens_per_s"]:,.0f}',
        _text(row['times_trunk'], '{:.2f}'),
        _text(row['speedup'], '{:.2f}x as fast'),
        _text(row['useful'], '{:.1%}'),
        f'{row["peak_bytes"] / 2**30:.2f}',
        f'{row["warm_up_s"]:.1f}',
        row.get('note', ''),
    )
  rich.console.Console(width=140).print(table)
  for row in rows:
    print(json.dumps(row))


def write(rows: Sequence[Row], path: str | None) -> None:
  """Writes the rows as JSON lines, if there is a path."""
  if path:
    place = pathlib.Path(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _text(value: float | None, form: str) -> str:
  return '' if value is None else form.format(value)


def _title(row: Row) -> str:
  versions = ', '.join(f'{k} {v}' for k, v in row['versions'].items())
  model = f', shape {row["shape"]}, {row["dtype"]}' if 'shape' in row else ''
  return (
      f'{row["bench"]}{model}, {row["device"]},'
      f' {versions}, commit {row["commit"]}'
  )
