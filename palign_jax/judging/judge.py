"""Is a prefix enough?  Read off the student's probabilities of two labels.

`LabelJudge` compares them at the first token in which the labels differ:
deterministic, with a margin, and all probes of a trace share one reading of
what they have in common.  `reply.py` lets the student answer in words instead,
`verified.py` looks at what it makes of the prefix.
"""

from collections.abc import Sequence
import dataclasses
import typing
from typing import Any, Protocol

from absl import logging
import numpy as np

from palign_jax.core import errors
from palign_jax.judging import (
    calibration as calibration_lib,
    labels as labels_lib,
    reading as reading_lib,
    search as search_lib,
    trace as trace_lib,
    trunk as trunk_lib,
    trunk_scorer,
    verified,
)
from palign_jax.parallel import memory
from palign_jax.text import prompts, tokenizer as tokenizer_lib


@typing.runtime_checkable
class Scorer(Protocol):
  """What `TrunkScorer` and `RereadScorer` have in common."""

  num_tokens: int  # Read so far.

  def groups(self, lengths: Sequence[int]) -> list[list[int]]:
    """Returns which trunks fit the memory together."""

  def narrow(self) -> bool:
    """Reads fewer tokens together from now on; False if there are no fewer."""

  def open(self, trunks: Sequence[Sequence[int]]) -> Any:
    """Returns a batch, which scores probes and can `release` its memory."""


class LabelJudge:
  """Compares the probabilities of [ENOUGH] and [NOT_ENOUGH]."""

  def __init__(
      self,
      scorer: Scorer,
      tokenizer: tokenizer_lib.Tokenizer,
      prompt: str,
      *,
      calibration: calibration_lib.Calibration,
      abstain: float,
      verifier: verified.Verifier | None = None,
  ):
    """Finds where the labels part.

    Args:
      scorer: Of the student.
      tokenizer: The student's.
      prompt: A name in text/prompts.py.
      calibration: From log-odds to verdicts.
      abstain: Half the width of the band around the threshold in which the
        judge abstains.
      verifier: Decides where it abstains; without one that is not enough.

    Raises:
      ConfigError: If there is no such prompt, or the labels do not part.
    """
    prompts.judge(prompt, '', '')  # Checks the name before the first long step.
    self._scorer, self._tokenizer, self._prompt = scorer, tokenizer, prompt
    self._calibration, self._abstain = calibration, abstain
    self._verifier = verifier
    self._labels = labels_lib.find(tokenizer)
    self._bound: int | None = None  # Tokens of a group that were too many.
    self.prompt_tokens = 0
    self.trunk_tokens = 0
    self.halved = self.narrowed = 0  # Times that memory asked for it.

  @property
  def num_tokens(self) -> int:
    """Tokens computed so far, padding not counted."""
    return self._scorer.num_tokens

  def read(self, trace: trace_lib.Trace, limit: int) -> reading_lib.Reading:
    trunk = trunk_lib.Trunk(
        self._tokenizer,
        self._prompt,
        trace.question,
        trace.text,
        trace.ends,
        self._labels.shared,
    )

    def size(length: int) -> int:
      tail = trunk.tail(length)
      return tail.anchor + len(tail.tokens) - len(self._labels.shared)

    return reading_lib.Reading(
        trace, reading_lib.num_fitting(size, len(trace.ends), limit), trunk
    )

  def search(self, readings, begin, advance):
    trunks = [_tokens(reading) for reading in readings]
    waiting = self._scorer.groups([len(trunk) for trunk in trunks])[::-1]
    found = {}
    while waiting:
      group = waiting.pop()
      if len(group) > 1 and self._is_too_much(group, trunks):
        waiting += _halves(group)
        continue
      batch, message = None, None
      try:
        batch = self._scorer.open([trunks[i] for i in group])
        members = [readings[i] for i in group]
        found |= self._lockstep(batch, members, begin, advance)
      except memory.OutOfMemory as e:
        message = str(e)
      finally:
        if batch is not None:
          batch.release()  # There is room for one group at a time.
      # Out of the handler, so that the lost batch's buffers are free.
      if message is not None:
        waiting += self._retreat(group, trunks, message)
    return {reading.trace.id: found[reading.trace.id] for reading in readings}

  def _is_too_much(self, group, trunks) -> bool:
    return self._bound is not None and _size(group, trunks) >= self._bound

  def _retreat(self, group, trunks, message: str) -> list[list[int]]:
    """Returns the halves of a group that had no room, or a lone trace again.

    Raises:
      ConfigError: If it is one trace, and no less of it can be read at once.
    """
    size = _size(group, trunks)
    if len(group) == 1 and self._scorer.narrow():
      self.narrowed += 1
      logging.warning(
          'Out of memory with one trace of %d tokens (%s): reading half as many'
          ' of them together from now on.',
          size,
          message,
      )
      return [group]
    if len(group) == 1:
      raise errors.ConfigError(
          f'config.compute.judge_tokens: one trace of {size} tokens does not'
          f' fit the memory ({message}), however few of them are read together;'
          ' split the model over more devices with config.mesh.tensor, or cut'
          ' the trace shorter.'
      )
    self._bound = min(self._bound or size, size)
    self.halved += 1
    logging.warning(
        'Out of memory with %d traces, %d tokens in all (%s): going on with'
        ' half of them.',
        len(group),
        size,
        message,
    )
    return _halves(group)

  def _lockstep(self, batch, readings, begin, advance):
    """Searches a group of traces that are in memory together."""
    index = {reading.trace.id: i for i, reading in enumerate(readings)}
    empty = np.zeros(len(readings), np.float32)
    if self._calibration.prior:
      empty = self._score(batch, readings, [(i, 0) for i in index.values()])

    def ask(probes: Sequence[search_lib.Probe]) -> list[search_lib.Verdict]:
      places = [(index[probe.trace_id], probe.length) for probe in probes]
      margins = self._score(batch, readings, places)
      verdicts = [
          self._verdict(float(margin), float(empty[i]))
          for margin, (i, _) in zip(margins, places, strict=True)
      ]
      advance(len(probes))
      cuts = [(readings[i].trace, length) for i, length in places]
      return self._decide(batch, cuts, verdicts)

    searches = {reading.trace.id: begin(reading) for reading in readings}
    return search_lib.drive(searches, ask)

  def _score(self, batch, readings, places) -> np.ndarray:
    """Returns the log-odds at each (reading, length)."""
    by_reading: dict[int, list[int]] = {}
    for i, length in places:
      by_reading.setdefault(i, []).append(length)
    tails = {}
    for i, lengths in by_reading.items():
      found = readings[i].trunk.tails(lengths)
      tails |= {(i, n): t for n, t in zip(lengths, found, strict=True)}
    labels, read = self._labels, self._scorer.num_tokens
    probes = [
        trunk_scorer.Probe(
            i, tails[i, n].anchor, tails[i, n].tokens, labels.yes, labels.no
        )
        for i, n in places
    ]
    margins = batch.score(probes)
    in_tails = sum(len(probe.tokens) for probe in probes)
    self.prompt_tokens += in_tails + sum(probe.anchor for probe in probes)
    self.trunk_tokens += max(self._scorer.num_tokens - read - in_tails, 0)
    return margins

  def _verdict(self, raw: float, empty: float) -> search_lib.Verdict:
    margin = self._calibration.margin(raw, empty)
    p_enough = calibration_lib.chance(margin)
    off = p_enough - self._calibration.threshold
    abstained = abs(off) < self._abstain
    return search_lib.Verdict(
        enough=off >= 0 and not abstained,
        p_enough=p_enough,
        margin=margin,
        abstained=abstained,
    )

  def _decide(self, batch, cuts, verdicts) -> list[search_lib.Verdict]:
    """Lets the verifier decide where the labels abstained."""
    open_ = [i for i, verdict in enumerate(verdicts) if verdict.abstained]
    if self._verifier is None or not open_:
      return verdicts
    # The sampler takes what memory the trunks were given.  They are read again
    # if the search goes on: a curve does not, and to halve takes few rounds.
    batch.release()
    proofs = self._verifier.judge([cuts[i] for i in open_])
    for i, proof in zip(open_, proofs, strict=True):
      verdicts[i] = dataclasses.replace(
          verdicts[i],
          enough=proof.enough,
          rollouts=proof.rollouts,
          passes=proof.passes,
      )
    return verdicts


def _tokens(reading: reading_lib.Reading) -> list[int]:
  """Returns of a trunk what its probes may see.

  All of it, unless the context ends before: a cut's prompt may agree with the
  trunk beyond the cut, further than that of the cut after it.
  """
  trunk = reading.trunk
  if reading.num_cuts == trunk.num_cuts:
    return trunk.tokens.tolist()
  tails = trunk.tails(range(reading.num_cuts + 1))
  return trunk.tokens[: max(tail.anchor for tail in tails)].tolist()


def _size(group: Sequence[int], trunks: Sequence[list[int]]) -> int:
  return sum(len(trunks[i]) for i in group)


def _halves(group: list[int]) -> list[list[int]]:
  """Returns a group as two, the one that comes first last."""
  middle = (len(group) + 1) // 2
  return [group[middle:], group[:middle]]
