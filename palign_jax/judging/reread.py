"""Scores probes by reading each one's whole prompt anew.

It is what a shared trunk must agree with, behind the same interface: what it
costs is the number of probes times the length of the trace.
"""

from collections.abc import Sequence

import numpy as np

from palign_jax.judging import scorer as scorer_lib, trunk_scorer
from palign_jax.parallel import memory


class RereadScorer:
  """A `TrunkScorer` that keeps nothing between two probes."""

  def __init__(self, scorer: scorer_lib.Scorer):
    self._scorer = scorer
    self.num_tokens = 0  # Read so far, without padding.

  def groups(self, lengths: Sequence[int]) -> list[list[int]]:
    """Returns one group: nothing of a trunk stays in memory."""
    return [list(range(len(lengths)))] if lengths else []

  def narrow(self) -> bool:
    """See `Scorer.narrow`."""
    return self._scorer.narrow()

  def open(self, trunks: Sequence[Sequence[int]]) -> 'RereadBatch':
    return RereadBatch(self, trunks)

  def read(self, questions: Sequence[scorer_lib.Question]) -> np.ndarray:
    """Returns their scores; raises `OutOfMemory` if there was no room."""
    with memory.guard():
      margins = self._scorer.score(questions)
    self.num_tokens += sum(len(question.tokens) for question in questions)
    return margins


class RereadBatch:
  """Trunks whose prompts are put together and read whole."""

  def __init__(self, scorer: RereadScorer, trunks: Sequence[Sequence[int]]):
    self._scorer, self._trunks = scorer, trunks

  def release(self) -> None:
    """Does nothing: nothing is kept."""

  def score(self, probes: Sequence[trunk_scorer.Probe]) -> np.ndarray:
    """Returns log p(yes) - log p(no) of each, float32, in nats."""
    return self._scorer.read(
        [
            scorer_lib.Question(
                [*self._trunks[p.trunk][: p.anchor], *p.tokens], p.yes, p.no
            )
            for p in probes
        ]
    )
