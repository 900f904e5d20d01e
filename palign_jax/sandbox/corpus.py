"""Texts to pretrain the sandbox's models on, by random access and without end.

Row i depends only on the config and i.  Rows are plain: which prompt and chat
template they are written in is the caller's choice.
"""

from collections.abc import Mapping
import dataclasses
import random
from typing import Any

from palign_jax.core import errors
from palign_jax.sandbox import teacher, world


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """A mixture of texts.

  Attributes:
    kinds: Weight of each kind of row (see `KINDS`).
    steps: Weight of each number of steps, 1 to 8.
    seed: Names the corpus.
    split: 'train' or 'eval'.
    num_facts: Computations in a row of kind 'fact'.
    judge_remaining: A prefix is enough if at most so many events are left.
    style: How the traces are written.
  """

  kinds: Mapping[str, float | int]
  steps: Mapping[int, float | int]
  seed: int
  split: str = 'train'
  num_facts: int = 8
  judge_remaining: int = 2
  style: teacher.TeacherConfig = teacher.DEFAULT


class Corpus:
  """Row i of an endless corpus: a dict for every i from 0 on.

  Every row has `kind`, `question`, `prefix`, `reply` and `steps`:
    fact: some sums to do; the reply does them.
    chain: a story; the reply is a trace.
    judge: a story and a trace's first sentences as the prefix; the reply is
      '[ENOUGH]' or '[NOT_ENOUGH]'.
    continue: the same; the reply is the whole trace, prefix included.
  """

  def __init__(self, config: CorpusConfig):
    """Checks the weights.

    Args:
      config: What to mix.

    Raises:
      ConfigError: If a kind or number of steps is unknown, or none has weight.
    """
    for field, known in (('kinds', KINDS), ('steps', range(1, 9))):
      weights = getattr(config, field)
      for name in weights:
        if name not in known:
          raise errors.ConfigError(
              f'corpus.{field}: no {name!r}; known: {list(known)}.'
          )
      if not sum(weights.values()) > 0:
        raise errors.ConfigError(f'corpus.{field}: nothing has any weight.')
    self._config = config

  def __getitem__(self, index: int) -> dict[str, Any]:
    config = self._config
    rng = random.Random(f'corpus {config.seed} {index}')
    kind = rng.choices(list(config.kinds), list(config.kinds.values()))[0]
    steps = rng.choices(list(config.steps), list(config.steps.values()))[0]
    row = KINDS[kind](config, index, steps, rng)
    return {'kind': kind, 'steps': steps, 'prefix': ''} | row


def _fact(config, index, steps, rng):
  del index, steps
  sums, replies = [], []
  for _ in range(config.num_facts):
    left = rng.randint(1, world.MAX_AMOUNT)
    allowed = world.choices(left)
    sign = rng.choice(tuple(allowed))
    number = rng.choice(allowed[sign])
    sums.append(f'{left} {sign} {number}')
    replies.append(f'So {sums[-1]} = {world.compute(left, sign, number)}.')
  # One computation is no story: its steps count as 1.
  return {
      'question': f'What is {", ".join(sums)}?',
      'reply': ' '.join(replies),
      'steps': 1,
  }


def _chain(config, index, steps, rng):
  del rng
  problem = world.problem(config.seed, index, steps, config.split)
  reply = teacher.trace(problem, config.seed, config.style)
  return {'question': problem.question, 'reply': reply}


def _continue(config, index, steps, rng):
  row = _chain(config, index, steps, rng)
  # The last sentence is the answer: nothing would be left to continue.
  end = rng.choice(teacher.sentence_ends(row['reply'])[:-1])
  return row | {'prefix': row['reply'][:end]}


def _judge(config, index, steps, rng):
  problem = world.problem(config.seed, index, steps, config.split)
  text = teacher.trace(problem, config.seed, config.style)
  cuts = list(
      zip(
          teacher.sentence_ends(text),
          teacher.progress(problem, text),
          strict=True,
      )
  )
  end, done = rng.choice(cuts)
  enough = steps - done <= config.judge_remaining
  return {
      'question': problem.question,
      'prefix': text[:end],
      'reply': '[ENOUGH]' if enough else '[NOT_ENOUGH]',
  }


KINDS = {
    'fact': _fact,
    'chain': _chain,
    'judge': _judge,
    'continue': _continue,
}
