"""Table and figure of how cost grows, from the rows of `growth.py`."""

from collections.abc import Sequence
import pathlib

import matplotlib

matplotlib.use('svg')
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks import rows as rows_lib

_AXES = {
    'tokens': 'tokens of a trace',
    'sentences': 'sentences of a trace',
    'traces': 'traces',
    'rows': 'rows of the sampler',
}
_LINES = {
    ('curve', 'ours'): ('ours, curve', '#2a6fbb', '-'),
    ('binary', 'ours'): ('ours, binary', '#2a6fbb', '--'),
    ('mixed', 'ours'): ('ours, sampling', '#2a6fbb', '-'),
    ('curve', 'torch_strong'): ('PyTorch, curve', '#c2571a', '-'),
    ('binary', 'torch_strong'): ('PyTorch, binary', '#c2571a', '--'),
    ('mixed', 'torch_strong'): ('PyTorch, sampling', '#c2571a', '-'),
}
_BEGIN, _END = '<!-- growth begins -->', '<!-- growth ends -->'


def write(rows: Sequence[rows_lib.Row], folder: pathlib.Path, name: str):
  """Writes results/<name>.svg, and the tables into README.md.

  Args:
    rows: From `growth.py`.
    folder: The benchmarks'.
    name: Of the results.
  """
  _figure(rows, folder / 'results' / f'{name}.svg')
  page = folder / 'README.md'
  before, _, rest = page.read_text().partition(_BEGIN)
  _, _, after = rest.partition(_END)
  text = '\n\n'.join([f'![Growth](results/{name}.svg)', *tables(rows)])
  page.write_text(f'{before}{_BEGIN}\n{text}\n{_END}{after}')


def exponent(points: Sequence[tuple[float, float]]) -> float | None:
  """Returns the slope of log y over log x by least squares; None of one point.

  Args:
    points: x and y, all above 0.
  """
  if len({x for x, _ in points}) < 2:
    return None
  x = np.log([x for x, _ in points])
  y = np.log([y for _, y in points])
  return float(np.polyfit(x, y, 1)[0])


def tables(rows: Sequence[rows_lib.Row]) -> list[str]:
  """Returns a title and a table in Markdown for each axis."""
  first = rows[0]
  versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
  commits = ', '.join(dict.fromkeys(row['commit'] for row in rows))
  parts = [
      f'Shape {first["shape"]}, {first["dtype"]}, {first["device"]};'
      f' {versions}; commit {commits}. A cell is seconds ({_runs(rows)} after'
      ' warm-up), then peak memory in GiB of a process of its own. Exponents'
      ' are slopes of the logarithm of either over that of the first column.'
      ' PyTorch reads judge prompts one by one here: to find its best batch at'
      ' every point would take longer than all the rest. Ours reads up to'
      ' 65,536 tokens together (`compute.judge_tokens`) unless told otherwise.'
      ' Where a cell begins with ~, `generate` drew its first batch of the'
      ' requests only: the seconds, in the figure too, are those of all of them'
      ' at its rate, the memory is that of this batch.'
  ]
  for axis, title in _AXES.items():
    of_axis = [row for row in rows if row['axis'] == axis]
    if of_axis:
      fixed = f'The same at all points: {of_axis[0]["fixed"]}.'
      parts += [f'### Cost against {title}', fixed, _table(of_axis, title)]
  return parts


def _runs(rows: Sequence[rows_lib.Row]) -> str:
  """Returns of how many runs a cell is the median."""
  fewest, most = (f(len(row['samples']) for row in rows) for f in (min, max))
  if most == 1:
    return 'one run'
  number = str(most) if fewest == most else f'{fewest} to {most}'
  return f'median of {number} runs'


def _table(rows: Sequence[rows_lib.Row], title: str) -> str:
  lines = [key for key in _LINES if any(_key(row) == key for row in rows)]
  cells = {(row['at'], _key(row)): row for row in rows}
  head = [title, *(_LINES[key][0] for key in lines)]
  body = [
      [f'{at:,}', *(_cell(cells.get((at, key))) for key in lines)]
      for at in sorted({row['at'] for row in rows})
  ]
  for field, name in (('seconds', 'seconds'), ('peak_bytes', 'memory')):
    found = [_points(rows, key, field) for key in lines]
    body += [
        [f'exponent of {name}, all points', *map(_exponent, found)],
        [f'exponent of {name}, last two', *(_exponent(p[-2:]) for p in found)],
    ]
  rule = ['---:'] * len(head)
  return '\n'.join(f'| {" | ".join(row)} |' for row in [head, rule, *body])


def _key(row: rows_lib.Row) -> tuple[str, str]:
  return row['case'], row['system']


def _cell(row: rows_lib.Row | None) -> str:
  if row is None:
    return 'left out'
  about = '~' if 'all_tokens' in row else ''
  seconds = _value(row, 'seconds')
  return f'{about}{seconds:.2f}, {row["peak_bytes"] / 2**30:.2f}'


def _value(row: rows_lib.Row, field: str) -> float:
  """Returns a field; seconds are those of all that was asked for."""
  if field == 'seconds' and 'all_tokens' in row:
    return row['seconds'] * row['all_tokens'] / row['tokens']
  return row[field]


def _exponent(points: Sequence[tuple[float, float]]) -> str:
  value = exponent(points)
  return 'one point' if value is None else f'{value:z.2f}'  # Without -0.00.


def _points(rows, key, field: str) -> list[tuple[float, float]]:
  of_line = [row for row in rows if _key(row) == key]
  return sorted((row['at'], _value(row, field)) for row in of_line)


def _figure(rows: Sequence[rows_lib.Row], path: pathlib.Path) -> None:
  axes = [axis for axis in _AXES if any(row['axis'] == axis for row in rows)]
  style = {'svg.hashsalt': 'growth', 'font.size': 9, 'svg.fonttype': 'none'}
  with plt.rc_context(style):
    figure, grid = plt.subplots(
        2, len(axes), figsize=(3.2 * len(axes), 6.4), squeeze=False
    )
    for axis, column in zip(axes, grid.T, strict=True):
      of_axis = [row for row in rows if row['axis'] == axis]
      _panel(column[0], of_axis, 'seconds', 1)
      _panel(column[1], of_axis, 'peak_bytes', 2**30)
      column[1].set_xlabel(_AXES[axis])
      column[0].legend(
          frameon=False, fontsize=8, loc='lower left', bbox_to_anchor=(0, 1)
      )
    grid[0, 0].set_ylabel('seconds')
    grid[1, 0].set_ylabel('peak memory, GiB')
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format='svg', metadata={'Date': None})
    plt.close(figure)


def _panel(ax, rows: Sequence[rows_lib.Row], field: str, unit: int) -> None:
  for key, (label, color, dashes) in _LINES.items():
    if points := _points(rows, key, field):
      xs, ys = zip(*points, strict=True)
      ys = [y / unit for y in ys]
      ax.plot(xs, ys, dashes, color=color, label=label, marker='o', ms=3)
  ats = sorted({row['at'] for row in rows})
  ax.set_xscale('log', base=2)
  if field == 'seconds':
    ax.set_yscale('log')
  else:
    ax.set_ylim(bottom=0)
  ax.set_xticks(ats, [f'{at // 1024}k' if at >= 1024 else at for at in ats])
  ax.spines[['top', 'right']].set_visible(False)
