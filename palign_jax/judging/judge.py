"""Is a prefix enough?  Asked of the student, in the words of a named prompt.

`LabelJudge` compares the probabilities of the two labels at the first token in
which they differ: deterministic, with a margin, one forward pass.
`GenerateJudge` lets the student reply and reads the reply by the reference's
rule, for fidelity.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math
import typing
from typing import Protocol

from palign_jax.core import keys
from palign_jax.judging import scorer as scorer_lib, search
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib

Advance = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Item:
  """A prefix to be judged.  `trace_id` and `length` (sentences) name it."""

  trace_id: str
  length: int
  question: str
  prefix: str


@typing.runtime_checkable
class Judge(Protocol):
  """What a search needs."""

  num_tokens: int  # Judged so far.

  def prompt(self, question: str, prefix: str) -> list[int]:
    """Returns the tokens that the student reads."""

  def __call__(
      self, items: Sequence[Item], advance: Advance
  ) -> list[search.Verdict]:
    """Returns the verdicts in order."""


class _Prompted:
  """Writes the judge's prompts."""

  def __init__(self, tokenizer: tokenizer_lib.Tokenizer, prompt: str):
    prompts.judge(prompt, '', '')  # Checks the name before the first long step.
    self._tokenizer, self._prompt = tokenizer, prompt
    self.num_tokens = 0  # Judged so far.

  def prompt(self, question: str, prefix: str) -> list[int]:
    user = prompts.judge(self._prompt, question, prefix)
    return self._tokenizer.encode(self._tokenizer.chat.prompt(user))


class LabelJudge(_Prompted):
  """Compares the probabilities of [ENOUGH] and [NOT_ENOUGH]."""

  def __init__(
      self,
      scorer: scorer_lib.Scorer,
      tokenizer: tokenizer_lib.Tokenizer,
      prompt: str,
      *,
      threshold: float,
      abstain: float,
  ):
    """Finds where the labels part.

    Args:
      scorer: Of the student.
      tokenizer: The student's.
      prompt: A name in text/prompts.py.
      threshold: A prefix suffices from this probability on.
      abstain: Half the width of the band around it that says neither, which
        counts as not enough.
    """
    super().__init__(tokenizer, prompt)
    self._scorer = scorer
    self._threshold, self._abstain = threshold, abstain
    labels = (prompts.ENOUGH, prompts.NOT_ENOUGH)
    yes, no = map(tokenizer.encode, labels)
    shared = 0
    while yes[shared] == no[shared]:
      shared += 1
    self._shared = yes[:shared]  # Both labels begin so, e.g. with '['.
    self._yes, self._no = yes[shared], no[shared]

  def __call__(self, items, advance):
    questions = [
        scorer_lib.Question(
            self.prompt(item.question, item.prefix) + self._shared,
            self._yes,
            self._no,
        )
        for item in items
    ]
    self.num_tokens += sum(len(question.tokens) for question in questions)
    margins = self._scorer.score(questions, advance)
    return [self._verdict(float(margin)) for margin in margins]

  def _verdict(self, margin: float) -> search.Verdict:
    # Not exp(margin): it overflows where a sigmoid is simply 1.
    p_enough = 0.5 * (1 + math.tanh(margin / 2))
    off = p_enough - self._threshold
    abstained = abs(off) < self._abstain
    return search.Verdict(
        enough=off >= 0 and not abstained,
        p_enough=p_enough,
        margin=margin,
        abstained=abstained,
    )


class GenerateJudge(_Prompted):
  """Lets the student reply, and reads the reply."""

  def __init__(
      self,
      sampler: sampler_lib.Sampler,
      tokenizer: tokenizer_lib.Tokenizer,
      prompt: str,
      *,
      seed: int,
      max_tokens: int,
  ):
    """Args are as of the sampler; `max_tokens` bounds a reply."""
    super().__init__(tokenizer, prompt)
    self._sampler, self._seed = sampler, seed
    self._max_tokens = max_tokens

  def __call__(self, items, advance):
    requests = [
        sampler_lib.Request(
            id=str(i),
            tokens=tuple(self.prompt(item.question, item.prefix)),
            key=keys.fold(self._seed, 'judge', item.trace_id, item.length),
            max_tokens=self._max_tokens,
        )
        for i, item in enumerate(items)
    ]
    self.num_tokens += sum(len(request.tokens) for request in requests)
    replies = {}
    for completion in self._sampler.run(requests):
      text = self._tokenizer.decode(completion.tokens)
      replies[completion.id] = search.Verdict(
          enough=prompts.parse_verdict(text), response=text
      )
      advance(1)
    return [replies[request.id] for request in requests]
