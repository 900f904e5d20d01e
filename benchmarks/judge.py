"""How fast is the judge, beside PyTorch on the same weights?

  python -m benchmarks.judge --shape=55m [--quick] [--json=FILE] \
      [--traces=FILE --tokenizer=FOLDER]

Cases: `curve` judges every cut, `binary` bisects; `trunk` is one plain forward
pass of all traces with the head at their last tokens, which `times_trunk`
counts by, the faster of ours and PyTorch's.

Random weights judge at random, so that every system computes its verdicts but
the search goes to one fixed boundary per trace.  Systems take turns; seconds
are the median.  On a GPU: --shape=qwen2.5-7b --dtype=bfloat16 --tokens=8192
--sentences=256; seconds end when the verdicts are on the host.
"""

import argparse
from collections.abc import Sequence
import functools
import tempfile

from etils import epath

from benchmarks import harness, rows as rows_lib, shapes, texts
from palign_jax.text import tokenizer as tokenizer_lib

SANDBOX = 'palign_jax/sandbox/assets/student'
_OURS, _TORCH = 'benchmarks.judge_ours', 'benchmarks.torch_judge'
CASES = ('trunk', 'curve', 'binary')
_SYSTEMS = {
    'trunk': ('ours', 'torch_strong'),
    'curve': ('ours', 'torch_strong'),
    'binary': ('ours', 'ours_full', 'torch_reference', 'torch_strong'),
}
# Traces for a curve of PyTorch's, which rereads all before every cut.
_FEW = 1
_SLOW = (('curve', 'torch_strong'), ('binary', 'ours_full'))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--shape', required=True, choices=list(shapes.SHAPES))
  add('--quick', action='store_true', help='One short trace, some minutes.')
  add('--json', help='Also writes the rows there.')
  add('--traces', help='JSON lines; without it text of the sandbox.')
  add('--tokenizer', help="Folder of the traces' tokenizer.")
  add('--num_traces', type=int, help='8, or 1 with --quick.')
  add('--tokens', type=int, help='Of a trace; 2048, or 1024 with --quick.')
  add('--sentences', type=int, help='Of a trace; 60, or 30 with --quick.')
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--judge_tokens', type=int, default=1024, help='As the quickstart has.')
  add('--repetitions', type=int, default=5)
  add('--cases', nargs='+', default=CASES[1:], choices=CASES[1:])
  add(
      '--systems',
      nargs='+',
      choices=sorted({x for names in _SYSTEMS.values() for x in names}),
      help='Only these; ours is always there.',
  )
  args = parser.parse_args(argv)
  if bool(args.traces) != bool(args.tokenizer):
    parser.error('--traces and --tokenizer come together.')
  args.num_traces = args.num_traces or (1 if args.quick else 8)
  args.tokens = args.tokens or (1024 if args.quick else 2048)
  args.sentences = args.sentences or (30 if args.quick else 60)
  return args


def specs(
    case: str,
    folder: str,
    tasks: Sequence[texts.Task],
    dtype: str,
    judge_tokens: int,
    few: int = _FEW,
) -> list[harness.Spec]:
  """Returns the systems of a case.

  Args:
    case: One of `CASES`.
    folder: The checkpoint.
    tasks: What to judge.
    dtype: Of weights and computation.
    judge_tokens: As in config.compute.
    few: How many of the tasks PyTorch gets for a curve.
  """
  common = dict(folder=folder, tasks=tasks, dtype=dtype)
  if case == 'trunk':
    return [
        harness.Spec(case, system, f'{module}:TrunkPass', common)
        for system, module in zip(_SYSTEMS[case], (_OURS, _TORCH), strict=True)
    ]
  common['case'] = case
  ours = common | {'judge_tokens': judge_tokens}
  fewer = common | {'tasks': tasks[:few]} if case == 'curve' else common
  makers = {
      'ours': (f'{_OURS}:Judge', ours),
      'ours_full': (f'{_OURS}:Judge', ours | {'full': True}),
      'torch_reference': (f'{_TORCH}:Reference', common),
      'torch_strong': (f'{_TORCH}:Strong', fewer),
  }
  return [harness.Spec(case, name, *makers[name]) for name in _SYSTEMS[case]]


def prepare(args: argparse.Namespace, place: epath.Path):
  """Returns a checkpoint's folder and the tasks."""
  source = args.tokenizer or SANDBOX
  folder = place / args.shape
  shapes.make(
      folder, args.shape, source, args.dtype, own=args.tokenizer is not None
  )
  tasks = texts.tasks(
      texts.read(args.traces) if args.traces else texts.sandbox(),
      tokenizer_lib.load(source),
      num_traces=args.num_traces,
      num_tokens=args.tokens,
      num_sentences=args.sentences,
  )
  return str(folder), tasks


def run(args: argparse.Namespace) -> list[rows_lib.Row]:
  """Measures what the flags ask for, a case after the other."""
  with tempfile.TemporaryDirectory() as place:
    folder, tasks = prepare(args, epath.Path(place))
    extra = about(args, tasks)
    rows = []
    for case in args.cases:
      make = functools.partial(
          specs,
          folder=folder,
          tasks=tasks,
          dtype=args.dtype,
          judge_tokens=args.judge_tokens,
      )
      chosen = [spec for spec in make(case) if _is_wanted(args, spec)]
      measured = harness.measure(make('trunk') + chosen, args.repetitions)
      check(measured)
      rows += rows_lib.make('judge', measured, extra | {'beside': case})
  return rows


def _is_wanted(args: argparse.Namespace, spec: harness.Spec) -> bool:
  if spec.system == 'ours':
    return True
  if args.systems:
    return spec.system in args.systems
  return not (args.quick and (spec.case, spec.system) in _SLOW)


def check(measured: Sequence[harness.Measured]) -> None:
  """Raises RuntimeError unless all systems probed the same."""
  searches = [m for m in measured if 'probes' in m.facts]
  (ours,) = (m for m in searches if m.spec.system == 'ours')
  for m in searches:
    for name, lengths in m.facts['probes'].items():
      if lengths != ours.facts['probes'][name]:
        raise RuntimeError(f'{m.spec.system} probed {name} at {lengths}')


def about(
    args: argparse.Namespace, tasks: Sequence[texts.Task]
) -> dict[str, object]:
  """Returns what is the same for all rows."""
  tokenizer = tokenizer_lib.load(args.tokenizer or SANDBOX)
  trunks = texts.trunks(tokenizer, tasks)
  return {
      **harness.machine(),
      'shape': args.shape,
      'dtype': args.dtype,
      'num_traces': len(tasks),
      'mean_trunk_tokens': round(sum(map(len, trunks)) / len(trunks), 1),
      'mean_sentences': round(sum(len(t.ends) for t in tasks) / len(tasks), 1),
      'text': 'given' if args.traces else 'sandbox',
  }


def main():
  """Reads flags, measures, prints."""
  args = parse()
  if args.quick:
    for case, system in _SLOW:
      harness.say(f'Left out with --quick, for its time: {case}/{system}')
  rows_lib.report(run, args)


if __name__ == '__main__':
  main()
