r"""The tokens of all judge prompts of one trace: a trunk, and a tail per cut.

  trunk   system, question, sentence 1, sentence 2, ..., sentence S
  tail                            \ end of sentence 1, "Reply with ..."

The prompt about a prefix is the trunk's first `anchor` tokens and then its
tail: id by id what the tokenizer makes of that prompt alone.  The anchor may
stand before the cut, where the cut changes how text falls into tokens.

To encode whole prompts would cost S encodings of the trace.  But a tokenizer
divides a text into words and those into tokens, so encoding may be taken up at
a place that begins a word in trunk and prompt alike:

- Two words lie between it and the cut, so that a tokenizer that looks ahead
  sees the same text.
- ASCII stands on either side: no character composes across it.
- No added token can begin before it and end beyond the cut.
- The first word comes out as the trunk has it.  This finds tokenizers that
  treat the beginning of a text apart.

Where that fails the place moves back, at last to the beginning of the prompt.
"""

import bisect
from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools

import numpy as np

from palign_jax.core import errors
from palign_jax.text import prompts, tokenizer as tokenizer_lib

# Words no template knows, to see what is written around a prefix.
_SENTINEL = 'Qx7prefix7xQ'
# How many words before the cut to begin, if fewer do not do.
_WORDS_BACK = (2, 4, 16, 64)


@dataclasses.dataclass(frozen=True)
class Tail:
  """What a probe adds to its trunk.

  Attributes:
    anchor: It sees the trunk's first `anchor` tokens.
    tokens: At positions anchor, anchor + 1, ...; at least one.  The verdict is
      read at the last.
  """

  anchor: int
  tokens: tuple[int, ...]


class Trunk:
  """The judge prompts about the prefixes of one trace.

  Attributes:
    tokens: Ids of the prompt up to the last cut, int32.
    num_cuts: How many prefixes there are beside the empty one.
  """

  def __init__(
      self,
      tokenizer: tokenizer_lib.Tokenizer,
      prompt: str,
      question: str,
      trace: str,
      ends: Sequence[int],
      shared: Sequence[int] = (),
  ):
    """Encodes the trunk.

    Args:
      tokenizer: The student's.
      prompt: A name in text/prompts.py.
      question: What the trace answers.
      trace: All of it.
      ends: Where its prefixes end, in characters (text/sentences.py).
      shared: Tokens that follow every prompt, such as those with which both
        labels begin.

    Raises:
      ConfigError: If there is no judge prompt of this name.
      DataError: If `ends` do not increase, or leave the trace.
    """
    _check(ends, trace)
    self.num_cuts = len(ends)
    self._tokenizer, self._shared = tokenizer, tuple(shared)
    self._overhang = functools.cache(tokenizer.overhang)
    self._texts = _Texts(
        lambda prefix: tokenizer.chat.prompt(
            prompts.judge(prompt, question, prefix)
        ),
        trace,
        ends,
    )
    ids, offsets, words = tokenizer.encode_with_words(self._texts.trunk)
    self.tokens = np.array(ids, np.int32)
    self._places = _Places(self._texts.trunk, offsets, words)

  def tail(self, length: int) -> Tail:
    """Returns the tail of the first `length` sentences; 0 is no sentence."""
    return self.tails([length])[0]

  def tails(self, lengths: Sequence[int]) -> list[Tail]:
    """Returns `tail` of each, at less cost.

    Raises:
      IndexError: If there are not so many sentences.
    """
    splits = [self._texts.split(length) for length in lengths]
    cuts = np.array([same for same, _ in splits], np.int64)
    overhangs = np.array([self._overhang(rest) for _, rest in splits], np.int64)
    tails: list[Tail | None] = [None] * len(splits)
    left = np.arange(len(splits))
    for words_back in (*_WORDS_BACK, None):
      places = self._places.before(cuts[left], overhangs[left], words_back)
      found = self._encode([splits[i] for i in left], places)
      for i, tail in zip(left, found, strict=True):
        tails[i] = tail
      left = np.array([i for i in left if tails[i] is None], np.int64)
      if not left.size:
        break
    return tails

  def _encode(
      self, splits: Sequence[tuple[int, str]], places: np.ndarray
  ) -> list[Tail | None]:
    """Returns the tails; None where a place does not do."""
    text = self._texts.trunk
    starts = self._places.starts[places].tolist()
    pieces = [
        text[start:cut] + rest
        for start, (cut, rest) in zip(starts, splits, strict=True)
    ]
    return [
        self._compare(place, ids)
        for place, ids in zip(
            places.tolist(), self._tokenizer.encode_many(pieces), strict=True
        )
    ]

  def _compare(self, place: int, ids: list[int]) -> Tail | None:
    """Returns the tail, if the first word of `ids` is that of the trunk."""
    first = int(self._places.tokens[place])
    trunk = self.tokens[first : first + len(ids)].tolist()
    same = 0
    for mine, its in zip(ids, trunk, strict=False):
      if mine != its:
        break
      same += 1
    if same < self._places.sizes[place]:
      return None
    if same == len(ids) and not self._shared:
      same -= 1  # The verdict is read somewhere.
    return Tail(first + same, (*ids[same:], *self._shared))


class _Texts:
  """How the prompts are written, without a rendering for each."""

  def __init__(
      self, render: Callable[[str], str], trace: str, ends: Sequence[int]
  ):
    """Finds what stands around a prefix, and whether it always does.

    Args:
      render: Gives the prompt about a prefix.
      trace: What is cut.
      ends: Where.
    """
    self._render, self._trace, self._ends = render, trace, ends
    self._head, _, self._rest = render(_SENTINEL).partition(_SENTINEL)
    tried = [ends[i] for i in (0, len(ends) // 2, -1)] if ends else [0]
    rendered = [render(trace[:end]) for end in tried]
    self._is_framed = all(
        text == self._head + trace[:end] + self._rest
        for text, end in zip(rendered, tried, strict=True)
    )
    self.trunk = (
        self._head + trace[: tried[-1]] if self._is_framed else rendered[-1]
    )

  def split(self, length: int) -> tuple[int, str]:
    """Returns a prompt as characters of `trunk` to take, and what follows."""
    if not 0 <= length <= len(self._ends):
      raise IndexError(f'{length} of {len(self._ends)} sentences')
    end = self._ends[length - 1] if length else 0
    # Templates may strip a prompt that ends in a prefix that ends in a space.
    if self._is_framed and end and not self._trace[end - 1].isspace():
      return len(self._head) + end, self._rest
    text = self._render(self._trace[:end])
    lengths = range(1, min(len(text), len(self.trunk)) + 1)
    cut = bisect.bisect_left(
        lengths, True, key=lambda n: text[:n] != self.trunk[:n]
    )
    return cut, text[cut:]


class _Places:
  """Where the encoding of a text may be taken up; the first is its beginning.

  Attributes:
    starts: The character that begins each, increasing.
    tokens: The token that begins there.
    sizes: How many tokens the word there has; 0 at the beginning, where there
      is nothing to prove.
  """

  def __init__(
      self,
      text: str,
      offsets: Sequence[tuple[int, int]],
      words: Sequence[int],
  ):
    """Args are as from `Tokenizer.encode_with_words`."""
    bounds = np.fromiter(
        itertools.chain.from_iterable(offsets), np.int32, 2 * len(offsets)
    )
    bounds, words = bounds.reshape(-1, 2), np.array(words, np.int32)
    tokens = 1 + np.flatnonzero(words[1:] != words[:-1])
    ends = np.append(tokens[1:], len(words))
    starts = bounds[tokens, 0]
    safe = _begin_in_ascii(text, starts)
    # Not where characters changed places.
    safe &= np.maximum.accumulate(bounds[:, 1])[tokens - 1] <= starts
    self.starts = np.append(np.int32(0), starts[safe])
    self.tokens = np.append(np.int32(0), tokens[safe].astype(np.int32))
    self.sizes = np.append(np.int32(0), (ends - tokens)[safe].astype(np.int32))

  def before(
      self, cuts: np.ndarray, overhangs: np.ndarray, words_back: int | None
  ) -> np.ndarray:
    """Returns for each cut the place to begin at.

    Args:
      cuts: In characters.
      overhangs: How far before it the place must stand at least.
      words_back: How many more places there must be between; None begins at
        the beginning.
    """
    if words_back is None:
      return np.zeros(len(cuts), np.int64)
    last = np.searchsorted(self.starts, cuts, 'right') - 1 - words_back
    far = np.searchsorted(self.starts, cuts - overhangs, 'right') - 1
    return np.maximum(np.minimum(last, far), 0)


def _begin_in_ascii(text: str, starts: np.ndarray) -> np.ndarray:
  """Whether ASCII precedes and something visible in ASCII follows, by start.

  A space may precede what is visible.
  """
  codes = np.frombuffer((text + '\0').encode('utf-32-le'), np.uint32)
  visible = (codes > 0x20) & (codes < 0x7F)
  here, after = codes[starts], np.minimum(starts + 1, len(text))
  follows = visible[starts] | ((here == 0x20) & visible[after])
  return follows & (codes[np.maximum(starts - 1, 0)] < 0x80)


def _check(ends: Sequence[int], trace: str) -> None:
  bounds = [0, *ends]
  for before, end in itertools.pairwise(bounds):
    if not before < end <= len(trace):
      raise errors.DataError(
          f'cuts of a trace: {end} after {before} in {len(trace)} characters;'
          ' they must increase and stay within the trace.'
      )
