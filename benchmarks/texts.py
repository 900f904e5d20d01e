"""What the benchmarks read: traces cut to a size, with one answer each."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import random
import re

import numpy as np

from palign_jax.core import errors
from palign_jax.data import traces as traces_lib
from palign_jax.judging import trunk as trunk_lib
from palign_jax.sandbox import teacher, world
from palign_jax.text import sentences, tokenizer as tokenizer_lib

PROMPT = 'paper'  # Of the judge, on both sides.
_SEED = 20
_WORD_END = re.compile(r'\S(?=\s|$)')


@dataclasses.dataclass(frozen=True)
class Task:
  """A trace to judge.

  Attributes:
    id: Its name.
    question: What it solves.
    text: The trace.
    ends: Where it may be cut, in characters.
    boundary: From so many sentences on it counts as enough, whatever a model of
      random weights says.
  """

  id: str
  question: str
  text: str
  ends: Sequence[int]
  boundary: int


Text = tuple[str, str]  # A question and its trace.


def read(path: str) -> list[Text]:
  """Returns questions and traces of a file."""
  rows = traces_lib.read_traces(path, traces_lib.PRESETS['palign'])
  return [(row['question'], row['Long-CoT']) for row in rows]


def sandbox() -> Iterator[Text]:
  """Yields questions and traces of the sandbox's world, without end."""
  for i in itertools.count():
    problem = world.problem(_SEED, i, 2 + i % 7, 'eval')
    yield problem.question, teacher.trace(problem, _SEED)


def tasks(
    texts: Iterator[Text] | Sequence[Text],
    tokenizer: tokenizer_lib.Tokenizer,
    *,
    num_traces: int,
    num_tokens: int,
    num_sentences: int,
) -> list[Task]:
  """Returns traces of a size, each from texts of its own.

  A text that is too short is joined with those after it.  Cuts are spread
  evenly over the sentences, or over the words where there are too few of them.
  Boundaries are uniform over the cuts: of n traces, one lies in each n-th.

  Args:
    texts: Questions and traces.
    tokenizer: Counts.
    num_traces: How many.
    num_tokens: Of each, at most, and nearly.
    num_sentences: Cuts of each, unless there are fewer words.

  Raises:
    DataError: If the texts run out.
  """
  rng = random.Random(_SEED)
  strata = rng.sample(range(num_traces), num_traces)
  found, source = [], iter(texts)
  for i, stratum in enumerate(strata):
    question, text = _joined(source, tokenizer, num_tokens)
    ends = _spread(text, num_sentences)
    place = (stratum + rng.random()) / num_traces
    boundary = 1 + int(place * len(ends))
    found.append(Task(f'trace {i}', question, text, ends, boundary))
  return found


def _joined(source: Iterator[Text], tokenizer, num_tokens: int) -> Text:
  question, parts, length = '', [], 0
  for next_question, text in source:
    question = question or next_question
    parts.append(text)
    length += len(text)
    # No token is longer than some characters: spares most of the counting.
    if length < num_tokens:
      continue
    ids, offsets = tokenizer.encode_with_offsets('\n\n'.join(parts))
    if len(ids) >= num_tokens:
      return question, '\n\n'.join(parts)[: offsets[num_tokens - 1][1]]
  raise errors.DataError(
      f'the traces have not enough text for so many of {num_tokens} tokens'
      ' each; lower --num_traces or --tokens, or give a longer file.'
  )


def _spread(text: str, wanted: int) -> list[int]:
  """Returns where to cut a text: evenly, at its end too."""
  ends = sentences.cuts(text, 'sentence')
  if len(ends) < wanted:
    ends = [match.end() for match in _WORD_END.finditer(text)]
  num = min(wanted, len(ends))
  return [ends[(i + 1) * len(ends) // num - 1] for i in range(num)]


def trunks(
    tokenizer: tokenizer_lib.Tokenizer, tasks: Sequence[Task]
) -> list[np.ndarray]:
  """Returns the tokens of each task's judge prompt up to its last cut."""
  return [
      trunk_lib.Trunk(tokenizer, PROMPT, t.question, t.text, t.ends).tokens
      for t in tasks
  ]
