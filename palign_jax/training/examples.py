"""From a prompt and its weighted answer to token ids and loss weights.

Weights come from character offsets of one encoding of the whole text, never
from pieces encoded apart: the ids are those a model meets when it reads the
text.

Source: the masked loss of Eq. 2 of the P-ALIGN paper (arXiv 2601.10064), which
is this one with every weight 1.
"""

from collections.abc import Callable, Collection, Sequence
import dataclasses
import itertools
import typing
from typing import Protocol

import numpy as np

from palign_jax.core import errors


@typing.runtime_checkable  # For the type checks of the tests.
class Encoder(Protocol):
  """The part of a tokenizer that examples need."""

  def encode(self, text: str) -> list[int]:
    ...

  def encode_with_offsets(
      self, text: str
  ) -> tuple[list[int], list[tuple[int, int]]]:
    ...


@dataclasses.dataclass(frozen=True)
class Region:
  """A stretch of the answer and the loss weight of each of its tokens."""

  name: str
  text: str
  weight: float


@dataclasses.dataclass(frozen=True)
class RegionWeights:
  """Loss weight of a token by where it lies; 1 everywhere is Eq. 2."""

  begin: float
  prefix: float
  end: float
  continuation: float
  turn_end: float


@dataclasses.dataclass(frozen=True)
class Markers:
  """The texts around the prefix; both may be empty in plain fine-tuning."""

  begin: str
  end: str


@dataclasses.dataclass(frozen=True)
class Example:
  """One training sequence.

  Attributes:
    id: Of the record it comes from.
    tokens: Token ids [T], int32.
    weights: Loss weight of predicting each token from those before it [T],
      float32; 0 in the prompt.
  """

  id: str
  tokens: np.ndarray
  weights: np.ndarray


def regions(
    output: str,
    *,
    markers: Markers,
    turn_end: str,
    weights: RegionWeights,
    pieces: Callable[[str], list[str]],
    masked: Collection[int] = (),
) -> list[Region]:
  """Cuts a target into its regions.

  Args:
    output: Begin marker, prefix, end marker and continuation.  Without the
      begin marker in front all of it counts as continuation.
    markers: The two markers.
    turn_end: What the chat template writes after an answer.
    weights: Of each kind of region.
    pieces: Cuts a prefix into sentences whose join gives it back.
    masked: Numbers of prefix sentences, from 0, that get weight 0: they stay
      in the context but are not learnt.

  Returns:
    The regions; their texts joined are `output + turn_end`.

  Raises:
    DataError: If the begin marker has no end marker after it.
  """
  found = []
  if markers.begin and output.startswith(markers.begin):
    inside, end, output = output[len(markers.begin) :].partition(markers.end)
    if not end:
      raise errors.DataError(
          f'the target has {markers.begin!r} without {markers.end!r}; write'
          ' both or none.'
      )
    found.append(Region('begin', markers.begin, weights.begin))
    for i, sentence in enumerate(pieces(inside)):
      weight = 0.0 if i in masked else weights.prefix
      found.append(Region(f'prefix {i}', sentence, weight))
    found.append(Region('end', markers.end, weights.end))
  found.append(Region('continuation', output, weights.continuation))
  found.append(Region('turn_end', turn_end, weights.turn_end))
  return found


def build(
    id: str, prompt: str, answer: Sequence[Region], tokenizer: Encoder
) -> Example:
  """Encodes a prompt and its answer as one text and weighs every token.

  A token belongs to the region in which its last visible character lies (one
  of white space alone: its last character).  So a full stop that a tokenizer
  joins with the line break behind it stays in the sentence that it ends.

  Args:
    id: Of the record, for messages.
    prompt: The rendered text before the answer; its tokens get weight 0.
    answer: The regions of the answer, in order.
    tokenizer: Encodes text, with the characters that each token covers.

  Returns:
    The example.

  Raises:
    DataError: If a token covers both prompt and answer, so that training would
      see a prompt that sampling never sees.
  """
  text = prompt + ''.join(region.text for region in answer)
  tokens, spans = tokenizer.encode_with_offsets(text)
  prompt_tokens = tokenizer.encode(prompt)
  if tokens[: len(prompt_tokens)] != prompt_tokens:
    raise errors.DataError(
        f'{id}: the prompt has other tokens alone than before its answer'
        f' {text[len(prompt) :][:20]!r}; put a marker between the two.'
    )
  ends = list(itertools.accumulate(len(r.text) for r in answer))
  bounds = np.array([len(prompt)] + [len(prompt) + end for end in ends])
  by_region = np.array([0.0] + [region.weight for region in answer])
  last = [_last_visible(text, start, end) for start, end in spans]
  weights = by_region[np.searchsorted(bounds, last, side='right')]
  weights[: len(prompt_tokens)] = 0.0
  return Example(id, np.array(tokens, np.int32), weights.astype(np.float32))


def _last_visible(text: str, start: int, end: int) -> int:
  visible = len(text[start:end].rstrip())
  return start + visible - 1 if visible else max(end - 1, 0)
