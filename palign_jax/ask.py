"""Asks a model one question and prints its answer as it comes.

    python -m palign_jax.ask --model=FOLDER "What is 17 times 23?"

The folder is any that the config's `student.path` takes, the new student's
export included.  The same seed gives the same answer.
"""

import argparse
from collections.abc import Iterator, Sequence
import sys

import jax

from palign_jax.checkpoints import hf_import
from palign_jax.core import errors, keys
from palign_jax.parallel import compiled
from palign_jax.sampling import loops, sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib


def main(argv: Sequence[str] | None = None) -> int:
  """Answers the question of the command line; returns the exit code."""
  args = _parser().parse_args(argv)
  try:
    for text in answer(args):
      sys.stdout.write(text)
      sys.stdout.flush()
    sys.stdout.write('\n')
  except (errors.PalignError, OSError) as e:
    print(f'error: {errors.line(e)}', file=sys.stderr)
    return 1
  return 0


def answer(args: argparse.Namespace) -> Iterator[str]:
  """Yields the answer piece by piece.

  Args:
    args: As the command line gives them.

  Raises:
    PalignError: If the model, a number or the question will not do.
  """
  sampling = sampler_lib.SamplingConfig(
      temperature=args.temperature,
      top_p=args.top_p,
      top_k=0,
      repetition_penalty=args.repetition_penalty,
  )
  if '' in args.stop:
    raise errors.ConfigError(
        "--stop '': an empty text stops at once; name one, or leave it out."
    )
  user = prompts.answer(args.prompt, args.question)
  dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  model = hf_import.load(args.model, dtype=dtype)
  tokenizer = tokenizer_lib.load(model.folder)
  hf_import.check_vocab(model, tokenizer.size)
  tokenizer_lib.check_stop(tokenizer, args.stop, '--stop')
  tokens = tuple(tokenizer.encode(tokenizer.chat.prompt(user)))
  room = model.max_positions - len(tokens)
  if room < 1:
    raise errors.DataError(
        f'the question takes {len(tokens)} tokens and {args.model} has room for'
        f' {model.max_positions}; ask a shorter one.'
    )
  sampler = sampler_lib.Sampler(
      model.params,
      model.config,
      mesh=None,
      dtype=dtype,
      num_rows=1,
      stop_ids=[*model.stop_ids, *tokenizer.eos_ids],
      vocab_limit=tokenizer.size,
      max_positions=model.max_positions,
      sampling=sampling,
      loop_rule=loops.DEFAULT,
      prefill_tokens=1,
      stop_strings=args.stop,
      tokenizer=tokenizer,
  )
  request = sampler_lib.Request(
      id='question',
      tokens=tokens,
      key=keys.fold(args.seed, 'ask'),
      max_tokens=min(args.max_tokens, room),
  )
  yield from sampler.stream(request)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='python -m palign_jax.ask',
      description='Asks a model one question.',
      formatter_class=argparse.ArgumentDefaultsHelpFormatter,
  )
  add = parser.add_argument
  add('question')
  add('--model', required=True, help='a Hugging Face folder')
  add('--prompt', default='paper', help=f'one of {", ".join(prompts.ANSWER)}')
  add('--temperature', type=float, default=0.6, help='0 is greedy')
  add('--top_p', type=float, default=0.9, help='1 keeps all')
  add('--repetition_penalty', type=float, default=1.0, help='1 is none')
  add('--max_tokens', type=int, default=4096, help='of the answer')
  add(
      '--stop',
      action='append',
      default=[],
      metavar='TEXT',
      help='where the answer ends, without it; may be given again',
  )
  add('--seed', type=int, default=0, help='another seed, another answer')
  return parser


if __name__ == '__main__':
  compiled.keep()
  sys.exit(main())
