"""How much of judging is the tokenizer's?

  python -m benchmarks.tokenizing [--traces=FILE --tokenizer=FOLDER]
      [--tokens=16384] [--json=FILE]

One trace, cut at 16 to 1,024 places.  Cases: `encoding` is one encoding of the
trace alone; `trunk` encodes the judge's prompt up to the last cut, `tails` what
follows at every cut.  `times_encoding` counts by the first.
"""

import argparse
from collections.abc import Sequence
import time

from benchmarks import harness, judge, rows as rows_lib, texts
from palign_jax.judging import trunk as trunk_lib
from palign_jax.text import tokenizer as tokenizer_lib

_CUTS = (16, 32, 64, 128, 256, 512, 1024)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(usage=__doc__)
  add = parser.add_argument
  add('--traces', help='JSON lines; without it text of the sandbox.')
  add('--tokenizer', help="Folder of the traces' tokenizer.")
  add('--tokens', type=int, default=16_384, help='Of the trace.')
  add('--repetitions', type=int, default=5)
  add('--json', help='Also writes the rows there.')
  args = parser.parse_args(argv)
  if bool(args.traces) != bool(args.tokenizer):
    parser.error('--traces and --tokenizer come together.')
  return args


def once(
    tokenizer: tokenizer_lib.Tokenizer, task: texts.Task, num_cuts: int
) -> dict[str, float]:
  """Returns the seconds of each case."""
  ends = [
      task.ends[(i + 1) * len(task.ends) // num_cuts - 1]
      for i in range(num_cuts)
  ]
  times = [time.perf_counter()]
  tokenizer.encode(task.text)
  times.append(time.perf_counter())
  trunk = trunk_lib.Trunk(
      tokenizer, texts.PROMPT, task.question, task.text, ends
  )
  times.append(time.perf_counter())
  trunk.tails(range(1, num_cuts + 1))
  times.append(time.perf_counter())
  return {
      'encoding': times[1] - times[0],
      'trunk': times[2] - times[1],
      'tails': times[3] - times[2],
  }


def run(args: argparse.Namespace) -> list[rows_lib.Row]:
  """Measures; returns a row for each number of cuts and case."""
  tokenizer = tokenizer_lib.load(args.tokenizer or judge.SANDBOX)
  (task,) = texts.tasks(
      texts.read(args.traces) if args.traces else texts.sandbox(),
      tokenizer,
      num_traces=1,
      num_tokens=args.tokens,
      num_sentences=_CUTS[-1],
  )
  facts = {'tokens': len(tokenizer.encode(task.text))}
  machine, rows = harness.machine(), []
  for num_cuts in _CUTS:
    if num_cuts > len(task.ends):
      break
    warm, *samples = (
        once(tokenizer, task, num_cuts) for _ in range(args.repetitions + 1)
    )
    measured = [
        harness.Measured(
            harness.Spec(f'{num_cuts} cuts: {case}', 'ours', '', {}),
            warm[case],
            tuple(sample[case] for sample in samples),
            facts,
            harness.process_peak(),
        )
        for case in warm
    ]
    extra = machine | {'cuts': num_cuts}
    made = rows_lib.make('tokenizing', measured, extra)
    for row, m in zip(made, measured, strict=True):
      row['times_encoding'] = round(m.seconds / measured[0].seconds, 3)
      row['note'] = f'{row["times_encoding"]:.2f} encodings'
    rows += made
  return rows


def main():
  """Reads flags, measures, prints."""
  rows_lib.report(run, parse())


if __name__ == '__main__':
  main()
