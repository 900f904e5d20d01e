"""How fast is fine-tuning, beside PyTorch on the same weights and rows?

  python -m benchmarks.sft --shape=55m [--quick] [--json=FILE]

Cases: `lora` trains adapters on a frozen base, `full` all weights.  A run is
one optimiser step: loss, gradient, clipping, AdamW.  Both sides begin with the
same weights and adapters and see the same rows of random tokens; the losses of
their first steps are compared (--steps, in float32 to 1e-3).

On a GPU: --shape=qwen2.5-7b --dtype=bfloat16 --tokens=4096 --cases lora.
"""

import argparse
from collections.abc import Sequence
import tempfile

from etils import epath
import numpy as np

from benchmarks import harness, rows as rows_lib, sft_work, shapes
from palign_jax.models import remat

TOKENIZER = 'palign_jax/sandbox/assets/student'  # Of no use but to be there.
CASES = ('lora', 'full')
_OURS, _TORCH = 'benchmarks.sft_ours:Train', 'benchmarks.torch_sft:Train'
LOSS_ERROR = 1e-3  # Between the losses, in float32.


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--shape', required=True, choices=list(shapes.SHAPES))
  add('--quick', action='store_true', help='2 rows, 5 steps, some minutes.')
  add('--json', help='Also writes the rows there.')
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--tokens', type=int, default=2048, help='Of a row.')
  add('--rows', type=int, help='Of a step; 4, or 2 with --quick.')
  add('--steps', type=int, help='Compared; 20, or 5 with --quick.')
  add('--rank', type=int, default=16, help='Of the adapters.')
  add('--repetitions', type=int, default=5)
  add('--cases', nargs='+', default=CASES, choices=CASES)
  add('--systems', nargs='+', help='Only these; ours is always there.')
  add('--remat', default='dots', choices=remat.NAMES, help='Ours.')
  add('--loss_chunk', type=int, default=512, help='Ours.')
  add('--rows_per_device', type=int, default=1, help='Ours.')
  add('--attention', default='auto', help='Ours; see models/kernels.py.')
  add('--peak', type=float, help='FLOP/s of the device, for mfu.')
  args = parser.parse_args(argv)
  args.rows = args.rows or (2 if args.quick else 4)
  args.steps = args.steps or (5 if args.quick else 20)
  return args


def specs(
    case: str, folder: str, adapter: str, args: argparse.Namespace
) -> list[harness.Spec]:
  """Returns the systems of a case.

  Args:
    case: One of `CASES`.
    folder: The checkpoint.
    adapter: Its adapters, before the first step.
    args: The flags.
  """
  work = sft_work.Work(
      folder=folder,
      adapter=adapter if case == 'lora' else None,
      dtype=args.dtype,
      num_rows=args.rows,
      num_tokens=args.tokens,
      num_steps=args.steps,
  )
  ours = dict(
      work=work,
      remat=args.remat,
      loss_chunk=args.loss_chunk,
      rows_per_device=args.rows_per_device,
      attention=args.attention,
  )
  return [
      harness.Spec(case, 'ours', _OURS, ours),
      harness.Spec(case, 'torch_strong', _TORCH, dict(work=work)),
  ]


def prepare(args: argparse.Namespace, place: epath.Path) -> tuple[str, str]:
  """Writes a checkpoint and adapters; returns their folders."""
  folder, adapter = place / args.shape, place / 'adapter'
  shapes.make(folder, args.shape, TOKENIZER, args.dtype, own=False)
  sft_work.make_adapter(str(folder), str(adapter), args.rank)
  return str(folder), str(adapter)


def run(args: argparse.Namespace) -> list[rows_lib.Row]:
  """Measures what the flags ask for, a case after the other."""
  peak, what = (args.peak, 'given') if args.peak else sft_work.peak()
  extra = {
      **harness.machine(),
      'shape': args.shape,
      'dtype': args.dtype,
      'rows': args.rows,
      'row_tokens': args.tokens,
      'rank': args.rank,
      'peak_flops': peak,
      'peak_is': what,
  }
  found = []
  with tempfile.TemporaryDirectory() as place:
    folder, adapter = prepare(args, epath.Path(place))
    for case in args.cases:
      wanted = [
          spec
          for spec in specs(case, folder, adapter, args)
          if spec.system == 'ours'
          or not args.systems
          or spec.system in args.systems
      ]
      measured = harness.measure(wanted, args.repetitions)
      error = check(measured, args.dtype)
      found += finish(
          rows_lib.make('sft', measured, extra | {'loss_error': error}), peak
      )
  return found


def check(measured: Sequence[harness.Measured], dtype: str) -> float | None:
  """Returns how far the systems' losses are apart at most, None if one ran.

  Raises:
    RuntimeError: If that is too much, in float32.
  """
  ours, *others = (np.array(m.facts['losses']) for m in measured)
  if not others:
    return None
  error = float(max(np.max(np.abs(ours - x)) for x in others))
  if not np.isfinite(ours).all() or not ours[-1] < ours[0]:
    raise RuntimeError(f'nothing is learnt: {ours.tolist()}')
  if not error <= LOSS_ERROR and dtype == 'float32':
    raise RuntimeError(f'the losses are {error} apart, above {LOSS_ERROR}')
  return round(error, 8)


def finish(rows: list[rows_lib.Row], peak: float) -> list[rows_lib.Row]:
  """Adds to each row what part of the device's FLOP/s it reached."""
  for row in rows:
    mfu = row['flops'] / row['seconds'] / peak
    row['mfu'] = round(mfu, 4)
    row['note'] = ', '.join([f'mfu {mfu:.1%}', row['note']])
  return rows


def main():
  """Reads flags, measures, prints."""
  rows_lib.report(run, parse())


if __name__ == '__main__':
  main()
