"""A trace before a judge: its prompts, and how many the context holds."""

from collections.abc import Callable, Sequence
import dataclasses
import typing
from typing import Protocol

from palign_jax.judging import (
    search as search_lib,
    trace as trace_lib,
    trunk as trunk_lib,
)
from palign_jax.text import prompts, tokenizer as tokenizer_lib

Advance = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Reading:
  """A trace as a judge has read it.

  Attributes:
    trace: The trace.
    num_cuts: At how many of its ends, from the first on, the prompt fits the
      context.
    trunk: Its prompts as tokens; None if the judge has no use for it.
  """

  trace: trace_lib.Trace
  num_cuts: int
  trunk: trunk_lib.Trunk | None = None


# Begins a search; called again if a group of traces must start over.
Begin = Callable[[Reading], search_lib.Search]


@typing.runtime_checkable
class Judge(Protocol):
  """What the stage needs."""

  num_tokens: int  # Computed so far, padding not counted.
  prompt_tokens: int  # Of all prompts judged so far, each written alone.

  def read(self, trace: trace_lib.Trace, limit: int) -> Reading:
    """Returns the trace with what fits `limit` tokens; it must have ends."""

  def search(
      self, readings: Sequence[Reading], begin: Begin, advance: Advance
  ) -> dict[str, search_lib.Found]:
    """Returns what the searches found, by the trace's id."""


def prompt_tokens(
    tokenizer: tokenizer_lib.Tokenizer,
    prompt: str,
    trace: trace_lib.Trace,
    length: int,
) -> list[int]:
  """Returns what the student reads of a prefix, written alone."""
  user = prompts.judge(prompt, trace.question, trace.prefix(length))
  return tokenizer.encode(tokenizer.chat.prompt(user))


def num_fitting(size: Callable[[int], int], total: int, limit: int) -> int:
  """Returns the most sentences whose prompt has at most `limit` tokens."""
  low, high = 0, total
  middle = high  # Most traces fit whole.
  while low < high:
    if size(middle) <= limit:
      low = middle
    else:
      high = middle - 1
    middle = (low + high + 1) // 2
  return low
