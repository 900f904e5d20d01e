"""One completion on its way: what was drawn, and where it ends."""

from collections.abc import Sequence
import dataclasses
from typing import Literal

import numpy as np

from palign_jax.core import errors
from palign_jax.sampling import loops
from palign_jax.text import tokenizer as tokenizer_lib

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
  """What became of a request.

  Attributes:
    id: The request's.
    tokens: Without the stop token; with stop strings, those whose text lies
      wholly before the string.
    finish_reason: A stop token or string, the limit, or a loop.
    text: Up to the stop string, which may begin within a token; None where
      the sampler has no tokenizer.
  """

  id: str
  tokens: tuple[int, ...]
  finish_reason: FinishReason
  text: str | None = None

  def decoded(self, tokenizer: tokenizer_lib.Tokenizer) -> str:
    """Returns `text`, decoded if nobody has read it yet."""
    return tokenizer.decode(self.tokens) if self.text is None else self.text


@dataclasses.dataclass(frozen=True)
class Ends:
  """What ends a completion before its limit.

  Attributes:
    stop_ids: It ends before any of these tokens.
    loop_rule: When it counts as looping; None for never.
    stop_strings: Its text ends before the first of these that appears.
    tokenizer: Turns tokens to text as they come; stop strings need it.
  """

  stop_ids: frozenset[int]
  loop_rule: loops.LoopRule | None = None
  stop_strings: tuple[str, ...] = ()
  tokenizer: tokenizer_lib.Tokenizer | None = None

  def __post_init__(self):
    if '' in self.stop_strings:
      raise errors.ConfigError(
          f'stop_strings {self.stop_strings}: an empty one stops at once; leave'
          ' it out.'
      )
    if self.stop_strings and self.tokenizer is None:
      raise errors.ConfigError(
          f'stop_strings {self.stop_strings}: they need a tokenizer.'
      )


class Row:
  """A request on its way."""

  def __init__(self, request: Request, ends: Ends):
    self.request = request
    self.tokens: list[int] = []
    self.finish_reason: FinishReason | None = None
    self._ends = ends
    self._detector = ends.loop_rule and loops.Detector(ends.loop_rule)
    self._text = _Text(ends) if ends.tokenizer else None

  @property
  def left(self) -> int:
    """How many tokens it may still draw."""
    if self.finish_reason:
      return 0
    return self.request.max_tokens - len(self.tokens)

  def take(self, tokens: np.ndarray) -> int:
    """Reads drawn tokens up to where the completion ends, if it ends there.

    Args:
      tokens: int32.

    Returns:
      How many of them were asked for, a stop token among them.

    Raises:
      DataError: If one of them could not be drawn.
    """
    tokens = tokens[: self.left]
    used = len(tokens)
    ends = np.flatnonzero(np.isin(tokens, list(self._ends.stop_ids)))
    if ends.size:
      used = int(ends[0]) + 1
      tokens, self.finish_reason = tokens[: ends[0]], 'stop'
    self._check(tokens)
    if self._detector:
      looped = self._detector.push(tokens)
      if looped is not None:
        tokens, self.finish_reason = tokens[:looped], 'loop'
        used = looped
    self.tokens.extend(tokens.tolist())
    if self._text and (cut := self._text.push(tokens)) is not None:
      used = min(used, cut[1])
      del self.tokens[cut[0] :]
      self.finish_reason = 'stop'
    if not self.left and not self.finish_reason:
      self.finish_reason = 'length'
    return used

  def _check(self, tokens: np.ndarray) -> None:
    """Raises if a token is -1: its logits were not finite."""
    if np.any(tokens < 0):
      number = len(self.tokens) + int(np.argmax(tokens < 0)) + 1
      raise errors.DataError(
          f'request {self.request.id}: the logits of token {number} of its'
          ' answer are not finite; take another dtype for the model'
          ' (config.student.dtype, config.teacher.dtype: bfloat16, float32),'
          ' or look whether its weights are whole.'
      )

  def text(self) -> str:
    """Returns what is certain to be in the completion's text."""
    return self._text.finish() if self.finish_reason else self._text.certain()

  def completion(self) -> Completion:
    """Returns the completion of a row that is done."""
    text = self._text and self._text.finish()
    return Completion(
        self.request.id, tuple(self.tokens), self.finish_reason, text
    )


class _Text:
  """The text of a completion, watched for stop strings."""

  def __init__(self, ends: Ends):
    self._streamer = tokenizer_lib.Streamer(ends.tokenizer)
    self._strings: Sequence[str] = ends.stop_strings
    self._text = ''
    self._lengths: list[int] = []  # Of the text, after each token.
    self._stopped = False

  def push(self, tokens: np.ndarray) -> tuple[int, int] | None:
    """Reads the next tokens.

    Returns:
      None unless a stop string is there; how many tokens lie wholly before it,
      and how many of the new ones were read.
    """
    for read, token in enumerate(tokens.tolist(), 1):
      begin = len(self._text)
      self._text += self._streamer.push(token)
      self._lengths.append(len(self._text))
      found = [
          place
          for s in self._strings
          if (place := self._text.find(s, max(0, begin - len(s) + 1))) >= 0
      ]
      if found:
        self._text, self._stopped = self._text[: min(found)], True
        return self._before(min(found)), read
    return None

  def _before(self, place: int) -> int:
    """Returns how many tokens give the text up to `place`, or less."""
    whole = [n for n in self._lengths if n <= place]
    # Later tokens of the same length hold half a character of what follows.
    return whole.index(whole[-1]) + 1 if whole and whole[-1] else 0

  def certain(self) -> str:
    """Returns the text but for an end that may begin a stop string."""
    starts = {s[:n] for s in self._strings for n in range(1, len(s))}
    held = max((len(s) for s in starts if self._text.endswith(s)), default=0)
    return self._text[: len(self._text) - held]

  def finish(self) -> str:
    """Returns the text."""
    rest = '' if self._stopped else self._streamer.finish()
    self._text += rest
    return self._text
