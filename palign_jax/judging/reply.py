"""Is a prefix enough?  Asked of the student, who may answer in words.

A reply is drawn and read by the reference's rule: for fidelity.
"""

from collections.abc import Sequence

from palign_jax.core import keys
from palign_jax.judging import (
    reading as reading_lib,
    search as search_lib,
    trace as trace_lib,
)
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import prompts, tokenizer as tokenizer_lib


class GenerateJudge:
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
    prompts.judge(prompt, '', '')  # Checks the name before the first long step.
    self._sampler, self._tokenizer = sampler, tokenizer
    self._prompt, self._seed = prompt, seed
    self._max_tokens = max_tokens
    self.num_tokens = 0  # Read and drawn.
    self.prompt_tokens = 0

  def read(self, trace: trace_lib.Trace, limit: int) -> reading_lib.Reading:
    size = lambda length: len(self._tokens(trace, length))
    return reading_lib.Reading(
        trace, reading_lib.num_fitting(size, len(trace.ends), limit)
    )

  def search(self, readings, begin, advance):
    traces = {reading.trace.id: reading.trace for reading in readings}

    def ask(probes: Sequence[search_lib.Probe]) -> list[search_lib.Verdict]:
      return self._ask(
          [(traces[p.trace_id], p.length) for p in probes], advance
      )

    searches = {reading.trace.id: begin(reading) for reading in readings}
    return search_lib.drive(searches, ask)

  def _tokens(self, trace: trace_lib.Trace, length: int) -> list[int]:
    return reading_lib.prompt_tokens(
        self._tokenizer, self._prompt, trace, length
    )

  def _ask(self, cuts, advance) -> list[search_lib.Verdict]:
    requests = [
        sampler_lib.Request(
            id=str(i),
            tokens=tuple(self._tokens(trace, length)),
            key=keys.fold(self._seed, 'judge', trace.id, length),
            max_tokens=self._max_tokens,
        )
        for i, (trace, length) in enumerate(cuts)
    ]
    read = sum(len(request.tokens) for request in requests)
    self.num_tokens += read
    self.prompt_tokens += read
    replies = {}
    for completion in self._sampler.run(requests):
      self.num_tokens += len(completion.tokens)
      text = self._tokenizer.decode(completion.tokens)
      replies[completion.id] = search_lib.Verdict(
          enough=prompts.parse_verdict(text), response=text
      )
      advance(1)
    return [replies[request.id] for request in requests]
