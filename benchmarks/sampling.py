"""How fast is the sampler, beside transformers' `generate`?

  python -m benchmarks.sampling --shape=55m [--quick] [--json=FILE] \
      [--traces=FILE --tokenizer=FOLDER]

Case `mixed`: 64 prompts, 4 samples of each, lengths from a log-normal between
16 and 512 tokens that nobody knows beforehand.  `useful` is the share of
row-steps whose token was asked for; tokens_per_s counts only those.  `generate`
gets the static batch that is best for these very lengths.  On a GPU:
--shape=qwen2.5-7b --dtype=bfloat16 --rows=128.
"""

import argparse
from collections.abc import Sequence
import tempfile

from etils import epath

from benchmarks import (
    harness,
    judge,
    requests as requests_lib,
    rows as rows_lib,
    shapes,
    texts,
)
from palign_jax.text import tokenizer as tokenizer_lib

_BATCHES = (16, 32, 64, 128)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--shape', required=True, choices=list(shapes.SHAPES))
  add('--quick', action='store_true', help='8 prompts, 2 samples of each.')
  add('--json', help='Also writes the rows there.')
  add('--traces', help='JSON lines with questions; without it the sandbox.')
  add('--tokenizer', help='Folder of a tokenizer.')
  add('--num_prompts', type=int, help='64, or 8 with --quick.')
  add('--num_samples', type=int, help='4, or 2 with --quick.')
  add('--rows', type=int, help='64, or 8 with --quick.')
  add('--prefill_tokens', type=int, default=8192, help='See config.compute.')
  add('--temperature', type=float, default=0.6)
  add('--top_p', type=float, default=0.9)
  add('--dtype', default='float32', choices=('float32', 'bfloat16'))
  add('--repetitions', type=int, default=5)
  add(
      '--few',
      type=int,
      default=0,
      help='Requests for `generate`, in whole batches; 0 for all. Rates are'
      ' compared.',
  )
  args = parser.parse_args(argv)
  if bool(args.traces) != bool(args.tokenizer):
    parser.error('--traces and --tokenizer come together.')
  args.num_prompts = args.num_prompts or (8 if args.quick else 64)
  args.rows = args.rows or (8 if args.quick else 64)
  args.num_samples = args.num_samples or (2 if args.quick else 4)
  return args


def specs(
    folder: str,
    requests: Sequence[requests_lib.Request],
    args: argparse.Namespace,
    batches: Sequence[int] = _BATCHES,
) -> list[harness.Spec]:
  """Returns both systems.

  Args:
    folder: The checkpoint.
    requests: What to draw.
    args: From `parse`.
    batches: Sizes from which `generate` gets the best.
  """
  common = dict(
      folder=folder,
      requests=requests,
      dtype=args.dtype,
      temperature=args.temperature,
      top_p=args.top_p,
  )
  ours = dict(num_rows=args.rows, prefill_tokens=args.prefill_tokens)
  return [
      harness.Spec(
          'mixed', 'ours', 'benchmarks.sampling_ours:Sampling', common | ours
      ),
      harness.Spec(
          'mixed',
          'torch_strong',
          'benchmarks.torch_sampling:Sampling',
          common | {'batches': batches, 'few': args.few},
      ),
  ]


def run(args: argparse.Namespace) -> list[rows_lib.Row]:
  """Measures."""
  source = args.tokenizer or judge.SANDBOX
  requests = requests_lib.make(
      texts.read(args.traces) if args.traces else None,
      tokenizer_lib.load(source),
      num_prompts=args.num_prompts,
      num_samples=args.num_samples,
  )
  machine = harness.machine()  # The tree may be another one at the end.
  with tempfile.TemporaryDirectory() as place:
    folder = epath.Path(place) / args.shape
    shapes.make(
        folder, args.shape, source, args.dtype, own=args.tokenizer is not None
    )
    measured = harness.measure(
        specs(str(folder), requests, args), args.repetitions
    )
  extra = {
      **machine,
      'shape': args.shape,
      'dtype': args.dtype,
      'num_prompts': args.num_prompts,
      'num_samples': args.num_samples,
      'mean_prompt_tokens': _mean([len(r.prompt) for r in requests]),
      'mean_length': _mean([r.length for r in requests]),
  }
  return rows_lib.make('sampling', measured, extra)


def _mean(numbers: Sequence[int]) -> float:
  return round(sum(numbers) / len(numbers), 1)


def main():
  """Reads flags, measures, prints."""
  rows_lib.report(run, parse())


if __name__ == '__main__':
  main()
