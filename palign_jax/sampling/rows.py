"""One completion on its way: what was drawn, and where it ends."""

import dataclasses
from typing import Literal

import numpy as np

from palign_jax.sampling import buckets, loops

FinishReason = Literal['stop', 'length', 'loop']


@dataclasses.dataclass(frozen=True)
class Request:
  """One completion to sample."""

  id: str
  tokens: tuple[int, ...]  # The prompt.
  key: np.ndarray  # uint32[2], from core.keys.fold.
  max_tokens: int


@dataclasses.dataclass(frozen=True)
class Completion:
  """What became of a request.  `tokens` leaves out the stop token."""

  id: str
  tokens: tuple[int, ...]
  finish_reason: FinishReason


class Row:
  """A request on its way."""

  def __init__(
      self,
      request: Request,
      stop_ids: frozenset[int],
      loop_rule: loops.LoopRule | None,
  ):
    self.request = request
    self.start = buckets.fitting(len(request.tokens))
    self.tokens: list[int] = []
    self.finish_reason: FinishReason | None = None
    self._stop_ids = stop_ids
    self._detector = loop_rule and loops.Detector(loop_rule)

  @property
  def left(self) -> int:
    """How many tokens it may still draw."""
    if self.finish_reason:
      return 0
    return self.request.max_tokens - len(self.tokens)

  def take(self, tokens: np.ndarray) -> None:
    """Reads drawn tokens up to where the completion ends, if it ends there."""
    tokens = tokens[: self.left]
    ends = np.flatnonzero(np.isin(tokens, list(self._stop_ids)))
    if ends.size:
      tokens, self.finish_reason = tokens[: ends[0]], 'stop'
    if self._detector:
      looped = self._detector.push(tokens)
      if looped is not None:
        tokens, self.finish_reason = tokens[:looped], 'loop'
    self.tokens.extend(tokens.tolist())
    if not self.left and not self.finish_reason:
      self.finish_reason = 'length'

  def completion(self) -> Completion:
    """Returns the completion of a row that is done."""
    return Completion(self.request.id, tuple(self.tokens), self.finish_reason)
