"""What the sampler's benchmark asks for: prompts, and a length for each."""

from collections.abc import Sequence
import dataclasses
import itertools
import math
import random

from benchmarks import texts
from palign_jax.core import errors
from palign_jax.text import prompts, tokenizer as tokenizer_lib

SHORTEST, LONGEST = 16, 512
_MEDIAN, _SIGMA = 90, 0.87
_SEED = 21


@dataclasses.dataclass(frozen=True)
class Request:
  """A completion to draw.

  Random weights never stop.  The length stands for where a model would have:
  who plans with it cheats.
  """

  prompt: tuple[int, ...]
  length: int  # In tokens.


def make(
    source: Sequence[texts.Text] | None,
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    num_prompts: int,
    num_samples: int,
) -> list[Request]:
  """Returns requests, those of a prompt one after the other.

  Args:
    source: Questions (and traces); None for those of the sandbox.
    tokenizer: Of the model.
    num_prompts: How many questions.
    num_samples: Of each.

  Raises:
    DataError: If there are not so many questions.
  """
  rng = random.Random(_SEED)
  some = itertools.islice(source or texts.sandbox(), num_prompts)
  questions = [question for question, _ in some]
  if len(questions) < num_prompts:
    raise errors.DataError(
        f'there are {len(questions)} questions and {num_prompts} were asked'
        ' for; lower --num_prompts.'
    )
  found = []
  for question in questions:
    prompt = tokenizer.chat.prompt(prompts.answer('paper', question))
    tokens = tuple(tokenizer.encode(prompt))
    found += [Request(tokens, _length(rng)) for _ in range(num_samples)]
  return found


def _length(rng: random.Random) -> int:
  drawn = rng.lognormvariate(math.log(_MEDIAN), _SIGMA)
  return min(max(round(drawn), SHORTEST), LONGEST)
