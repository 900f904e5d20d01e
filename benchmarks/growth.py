"""How do time and memory grow with length, sentences, traces and rows?

  python -m benchmarks.growth --shape=55m [--axes tokens sentences traces rows]
      [--traces=FILE --tokenizer=FOLDER] [--name=growth_55m]

Writes rows to benchmarks/results/<name>.json as they come, and from them the
table in benchmarks/README.md and the figure beside the rows.  With --page it
measures nothing and writes these anew.
"""

import argparse
from collections.abc import Iterator, Sequence
import dataclasses
import os
import pathlib
import tempfile

from etils import epath

from benchmarks import (
    growth_page,
    harness,
    judge,
    requests as requests_lib,
    rows as rows_lib,
    sampling,
    shapes,
    texts,
)
from palign_jax.core import command, jsonl
from palign_jax.text import tokenizer as tokenizer_lib

_HERE = pathlib.Path(__file__).parent
_REQUESTS = 64  # Of the axis `rows`, 4 of each prompt.
_Points = Iterator[tuple[int, list[harness.Spec]]]


@dataclasses.dataclass(frozen=True)
class Size:
  """What is read at one point of an axis."""

  traces: int
  tokens: int
  sentences: int


_AXES = {
    'tokens': {n: Size(1, n, 32) for n in (1024 << i for i in range(6))},
    'sentences': {n: Size(1, 3072, n) for n in (16 << i for i in range(7))},
    'traces': {n: Size(n, 1024, 32) for n in (1, 2, 4, 8, 16)},
}
_ROWS = (8, 16, 32, 64)
# Time grows at most with this power: it says what would take too long.
_POWERS = {'tokens': 2, 'sentences': 1, 'traces': 1, 'rows': 0}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--shape', default='55m', choices=list(shapes.SHAPES))
  add('--axes', nargs='+', default=[*_AXES, 'rows'], choices=[*_AXES, 'rows'])
  add('--traces', help='JSON lines; without it text of the sandbox.')
  add('--tokenizer', help="Folder of the traces' tokenizer.")
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--judge_tokens', type=int, default=65_536, help='See config.compute.')
  add('--repetitions', type=int, default=3)
  add('--most_s', type=float, default=100, help='Larger points are left out.')
  add('--most', type=int, help='Of every axis, at most so much.')
  add('--name', help='Of the results; growth_<shape>.')
  add('--page', action='store_true', help='Only writes table and figure.')
  args = parser.parse_args(argv)
  if bool(args.traces) != bool(args.tokenizer):
    parser.error('--traces and --tokenizer come together.')
  args.name = args.name or f'growth_{args.shape}'
  return args


def points(args: argparse.Namespace, axis: str, folder: str) -> _Points:
  """Yields the points of an axis, and what to measure there."""
  tokenizer = tokenizer_lib.load(args.tokenizer or judge.SANDBOX)
  source = texts.read(args.traces) if args.traces else None
  for at in _ROWS if axis == 'rows' else _AXES[axis]:
    if args.most and at > args.most:
      return
    if axis == 'rows':
      yield at, _rows_specs(args, folder, source, tokenizer, at)
      continue
    size = _AXES[axis][at]
    tasks = texts.tasks(
        source or texts.sandbox(),
        tokenizer,
        num_traces=size.traces,
        num_tokens=size.tokens,
        num_sentences=size.sentences,
    )
    yield at, _judge_specs(args, folder, tasks)


def _judge_specs(args, folder, tasks) -> list[harness.Spec]:
  specs = [
      spec
      for case in ('curve', 'binary')
      for spec in judge.specs(
          case, folder, tasks, args.dtype, args.judge_tokens, len(tasks)
      )
      if spec.system in ('ours', 'torch_strong')
  ]
  # To measure the best size would take longer than all the rest.
  alone = lambda spec: {'batch': 1} if spec.system != 'ours' else {}
  return [
      dataclasses.replace(spec, options={**spec.options, **alone(spec)})
      for spec in specs
  ]


def _rows_specs(args, folder, source, tokenizer, rows: int):
  requests = requests_lib.make(
      source, tokenizer, num_prompts=_REQUESTS // 4, num_samples=4
  )
  flags = [f'--shape={args.shape}', f'--rows={rows}', f'--dtype={args.dtype}']
  flags.append(f'--few={rows}')  # All of them take minutes in small batches.
  return sampling.specs(folder, requests, sampling.parse(flags), (rows,))


def grow(args: argparse.Namespace, axis: str, folder: str, write) -> None:
  """Measures an axis; `write` gets the rows of each point.

  A system that would take too long is left out from there on.
  """
  last: dict[tuple[str, str], tuple[int, float]] = {}
  machine = harness.machine()
  for at, specs in points(args, axis, folder):
    chosen = []
    for spec in specs:
      before, seconds = last.get((spec.case, spec.system), (at, 0))
      if seconds * (at / before) ** _POWERS[axis] <= args.most_s:
        chosen.append(spec)
      else:
        harness.say(f'{axis} {at}: {spec.case}/{spec.system} left out')
    if not chosen:
      return
    harness.say(f'{axis} {at}')
    measured = harness.measure(chosen, args.repetitions)
    for m in measured:
      last[m.spec.case, m.spec.system] = at, m.seconds
    place = {'axis': axis, 'at': at, 'fixed': _fixed(axis)}
    extra = {'shape': args.shape, 'dtype': args.dtype, **place}
    write(rows_lib.make('growth', measured, machine | extra))


def _fixed(axis: str) -> str:
  """Returns what stays the same along an axis."""
  if axis == 'rows':
    return f'{_REQUESTS} requests of 16 to 512 tokens, 4 of each prompt'
  sizes = dataclasses.asdict(next(iter(_AXES[axis].values())))
  return ', '.join(f'{n:,} {name}' for name, n in sizes.items() if name != axis)


def main():
  """Reads flags, measures, writes."""
  args = parse()
  # Several processes share the memory of a GPU.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  command.quiet_libraries()
  results = _HERE / 'results' / f'{args.name}.json'
  with command.one_line_errors(), tempfile.TemporaryDirectory() as place:
    if not args.page:
      source = args.tokenizer or judge.SANDBOX
      folder = epath.Path(place) / args.shape
      own = args.tokenizer is not None
      shapes.make(folder, args.shape, source, args.dtype, own=own)
      kept = [
          row
          for row in (jsonl.read(results) if results.exists() else [])
          if row['axis'] not in args.axes
      ]

      def write(rows: list[rows_lib.Row]) -> None:
        kept.extend(rows)
        rows_lib.write(kept, str(results))

      for axis in args.axes:
        grow(args, axis, str(folder), write)
    growth_page.write(jsonl.read(results), _HERE, args.name)


if __name__ == '__main__':
  main()
