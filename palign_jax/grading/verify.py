r"""Is the answer in a text the gold one?  Asked of math-verify, in workers.

The rule is the math-verify part of the reference's: what `parse` finds in the
whole text against what it finds in `$gold$` (P-ALIGN, src/evaluation.py).  Its
second grader, which reads boxes alone, is answered for by `grade_boxed`.

math-verify's own time limits are off.  They rest on a signal that C code does
not hear, and turn what they stop into "wrong" without a word; here the worker's
limit stops everything, and the verdict says so.
"""

from collections.abc import Callable, Sequence
import dataclasses
import importlib.metadata
import logging
from typing import Any

import math_verify

from palign_jax.core import golds
from palign_jax.grading import answers, workers

# What a verdict can rest on.
HOWS = (
    'string',  # Gold and answer are spelled the same.
    'math',  # math-verify compared the two.
    'no_answer',  # Nothing in the text reads as an answer.
    'unverifiable',  # The gold is none that a text could be held against.
    'timeout',  # The comparison took longer than its limit.
    'crash',  # The comparison brought its process down.
)


# A gold answer and a text.
Item = tuple[str | int | float | None, str | None]


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What the grader says of one text.

  Attributes:
    correct: The answer is the gold one; False wherever there is a doubt.
    answer: The answer as the text spells it; None where it has none, or where
      it was lost.
    how: One of `HOWS`.
  """

  correct: bool
  answer: str | None
  how: str


def version() -> str:
  """Returns the grader's name and version, for records."""
  return f'math-verify {importlib.metadata.version("math-verify")}'


def is_equal(pair: tuple[str, str]) -> Verdict:
  """Judges one (gold, text), both given to math-verify as they are."""
  # It would warn that its limits are off.
  logging.getLogger('math_verify').setLevel(logging.ERROR)
  gold, text = pair
  found = math_verify.parse(text, parsing_timeout=None)
  if not found:
    return Verdict(correct=False, answer=None, how='no_answer')
  answer = _spelling(found)
  wanted = math_verify.parse(gold, parsing_timeout=None)
  # math-verify compares these last; the result is the same, and faster.
  if answer and answer == _spelling(wanted):
    return Verdict(correct=True, answer=answer, how='string')
  correct = math_verify.verify(wanted, found, timeout_seconds=None)
  return Verdict(correct=bool(correct), answer=answer, how='math')


def _spelling(parsed: list[Any]) -> str | None:
  """Returns the text that a result of `parse` came from: its last part."""
  if parsed and isinstance(parsed[-1], str):
    return parsed[-1].strip()
  return None


class Grader:
  """Grades texts in worker processes; a context manager.

  Args:
    num_workers: Processes at most.
    limit_s: Seconds for one text; the verdict on one that takes longer is
      'timeout', and not correct.
    judge: Judges one (gold, text); tests put other functions here.
  """

  def __init__(
      self,
      *,
      num_workers: int,
      limit_s: float | int,
      judge: Callable[[tuple[str, str]], Verdict] = is_equal,
  ):
    self._pool = workers.Workers(
        judge, num_workers=num_workers, limit_s=limit_s
    )

  def __enter__(self) -> 'Grader':
    self._pool.__enter__()
    return self

  def __exit__(self, *exc: object) -> None:
    self._pool.__exit__(*exc)

  def grade(
      self,
      items: Sequence[Item],
      *,
      advance: Callable[[int], object] = lambda count: None,
  ) -> list[Verdict]:
    """Returns the verdict on each (gold, text), in their order.

    Args:
      items: Gold answers as a file may have them, and texts; None stands for
        one that is missing.
      advance: Told of each text that is done, for a progress bar.

    Returns:
      The verdicts.  Equal items are judged once.

    Raises:
      DataError: If a gold is neither text nor a number.
    """
    items = [
        (None if gold is None else golds.normalise(gold, at='a gold'), text)
        for gold, text in items
    ]
    verdicts = {}
    asked = []
    for item in dict.fromkeys(items):
      gold, text = item
      if not answers.is_verifiable(gold):
        verdicts[item] = Verdict(False, None, 'unverifiable')
      elif text is None:
        verdicts[item] = Verdict(False, None, 'no_answer')
      else:
        asked.append(item)
    advance(len(items) - len(asked))
    for index, result in self._pool.run([(f'${g}$', t) for g, t in asked]):
      if isinstance(result, workers.Lost):
        result = Verdict(False, None, result.how)
      verdicts[asked[index]] = result
      advance(1)
    return [verdicts[item] for item in items]

  def grade_boxed(
      self,
      items: Sequence[Item],
      *,
      advance: Callable[[int], object] = lambda count: None,
  ) -> list[Verdict]:
    r"""Grades as `grade` does, but only the last `\boxed{}` of a text counts.

    Args:
      items: As in `grade`.
      advance: As in `grade`.

    Returns:
      The verdicts; 'no_answer' for a text without a closed box.
    """
    boxes = []
    for gold, text in items:
      box = None if text is None else golds.last_boxed(text)
      boxes.append((gold, None if box is None else f'\\boxed{{{box}}}'))
    return self.grade(boxes, advance=advance)
