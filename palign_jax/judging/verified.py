"""Is a prefix enough?  Asked of what the student makes of it.

K short continuations are drawn from the cut and graded against the gold answer.
It is the judge that means what the paper wants, and the dearest: the labels
propose a cut, and continuations prove it or one of a few longer ones.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import typing
from typing import Protocol

from palign_jax.core import golds, keys
from palign_jax.grading import answers, verify
from palign_jax.judging import search as search_lib, trace as trace_lib
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import tokenizer as tokenizer_lib

Cut = tuple[trace_lib.Trace, int]  # A trace and a number of sentences.
_ENDED = 'stop'  # What is cut off is no training data either.


@typing.runtime_checkable
class Grader(Protocol):
  """What `grading.verify.Grader` does."""

  def grade(self, items: Sequence[verify.Item]) -> list[verify.Verdict]:
    """Returns the verdict on each (gold, text)."""


@dataclasses.dataclass(frozen=True)
class Writing:
  """How a prefix is put to the student, as the stage `align` does it.

  Attributes:
    prompt: Renders what the student reads of (question, prefix).
    graded: Returns of (prefix, continuation) what is graded.
  """

  prompt: Callable[[str, str], str]
  graded: Callable[[str, str], str]


class Verifier:
  """Draws continuations and grades them."""

  def __init__(
      self,
      sampler: sampler_lib.Sampler,
      tokenizer: tokenizer_lib.Tokenizer,
      grader: Grader,
      writing: Writing,
      *,
      seed: int,
      k: int,
      pass_rate: float,
      max_tokens: int,
      max_positions: int,
  ):
    """Takes what it needs; nothing is drawn yet.

    Args:
      sampler: Of the student.
      tokenizer: The student's.
      grader: Open as long as the verifier is used.
      writing: How a prefix is put to the student.
      seed: Of the run.
      k: Continuations of a cut.
      pass_rate: A cut suffices if at least this share of them is right.
      max_tokens: Of a continuation.
      max_positions: Of the student; a prompt that leaves less room gets that.
    """
    self._sampler, self._tokenizer = sampler, tokenizer
    self._grader, self._writing, self._seed = grader, writing, seed
    self._k, self._pass_rate = k, pass_rate
    self._max_tokens, self._max_positions = max_tokens, max_positions
    self.num_tokens = 0  # Read and drawn.

  def judge(
      self,
      cuts: Sequence[Cut],
      k: int | None = None,
      draw: str = 'verify',
  ) -> list[search_lib.Verdict]:
    """Returns whether each cut suffices, in order.

    A gold answer that nothing can be held against, or a prompt that leaves no
    room, gives no rollouts and is never enough.

    Args:
      cuts: Of any traces.
      k: Continuations of each; None for as many as the verifier is made for.
      draw: Names the draws: under another name others are drawn.
    """
    k = self._k if k is None else k
    asked = {
        i: self._requests(cut, k, draw)
        for i, cut in enumerate(cuts)
        if is_verifiable(cut[0])
    }
    passes = dict.fromkeys(range(len(cuts)), 0)
    for i, right in self._roll_out(cuts, asked):
      passes[i] += right
    return [
        search_lib.Verdict(
            enough=bool(asked.get(i)) and passes[i] / k >= self._pass_rate,
            rollouts=len(asked.get(i, ())),
            passes=passes[i],
        )
        for i in range(len(cuts))
    ]

  def _roll_out(
      self,
      cuts: Sequence[Cut],
      asked: Mapping[int, Sequence[sampler_lib.Request]],
  ) -> list[tuple[int, bool]]:
    """Returns of each continuation, by its cut's number, if it is right."""
    requests, names = [], {}
    for i, some in asked.items():
      for request in some:
        names[f'{i}/{request.id}'] = i
        requests.append(dataclasses.replace(request, id=f'{i}/{request.id}'))
    ended, items = [], []
    for completion in self._sampler.run(requests):
      self.num_tokens += len(completion.tokens)
      if completion.finish_reason == _ENDED:
        trace, length = cuts[names[completion.id]]
        text = completion.decoded(self._tokenizer)
        text = self._writing.graded(trace.prefix(length), text)
        ended.append(names[completion.id])
        items.append((trace.answer, text))
    verdicts = self._grader.grade(items)
    return [(i, v.correct) for i, v in zip(ended, verdicts, strict=True)]

  def _requests(self, cut: Cut, k: int, draw: str) -> list[sampler_lib.Request]:
    """Returns what to draw from a cut: nothing where there is no room."""
    trace, length = cut
    prompt = self._writing.prompt(trace.question, trace.prefix(length))
    tokens = tuple(self._tokenizer.encode(prompt))
    room = min(self._max_tokens, self._max_positions - len(tokens))
    if room < 1:
      return []
    self.num_tokens += len(tokens)
    return [
        sampler_lib.Request(
            id=str(sample),
            tokens=tokens,
            key=keys.fold(self._seed, draw, trace.id, length, sample),
            max_tokens=room,
        )
        for sample in range(k)
    ]


def is_verifiable(trace: trace_lib.Trace) -> bool:
  """Returns whether the trace's gold answer is one to hold texts against."""
  gold = trace.answer
  if gold is None:
    return False
  return answers.is_verifiable(golds.normalise(gold, at=f'trace {trace.id}'))


def candidates(found: search_lib.Found, total: int, extra: int) -> list[int]:
  """Returns the cuts to prove, from the proposed one to the whole trace.

  The one that the labels found (or, if they found none, the most probable that
  they judged) comes first.  The longer ones lie ever further apart and end with
  the whole: most proposals that fail come a little too early.

  Args:
    found: What the labels said.
    total: Sentences of the trace, as many as the context holds.
    extra: Longer cuts, at most.
  """
  start = found.cut.length or most_probable(found.verdicts)
  rest = total - start
  longer = [start + -(-rest >> (extra - 1 - i)) for i in range(extra)]
  return list(dict.fromkeys([start, *longer]))


def most_probable(verdicts: Mapping[int, search_lib.Verdict]) -> int:
  """Returns the length with the highest p_enough; of equal ones the longest."""
  return max(verdicts, key=lambda n: (verdicts[n].p_enough or 0.0, n))


def prove(
    found: Mapping[str, search_lib.Found],
    traces: Mapping[str, trace_lib.Trace],
    totals: Mapping[str, int],
    verifier: Verifier,
    extra: int,
) -> dict[str, search_lib.Found]:
  """Moves each proposed cut to the first that continuations prove.

  All traces go together: a round draws from one cut of each that is still
  unproven.  A trace with a gold answer that proves nothing stays as it is.

  Args:
    found: What the labels said, by the trace's id.
    traces: By id.
    totals: Sentences of each that the context holds.
    verifier: Draws and grades.
    extra: Longer cuts that are tried after the proposed one.

  Returns:
    The same with cuts that are proven, or None, and the proofs.
  """
  searches = {
      name: search_lib.confirm(candidates(known, totals[name], extra))
      for name, known in found.items()
      if is_verifiable(traces[name])
  }
  proven = search_lib.drive(
      searches,
      lambda probes: verifier.judge(
          [(traces[probe.trace_id], probe.length) for probe in probes]
      ),
  )
  return {
      name: (
          dataclasses.replace(
              known, cut=proven[name].cut, proofs=proven[name].verdicts
          )
          if name in proven
          else known
      )
      for name, known in found.items()
  }
