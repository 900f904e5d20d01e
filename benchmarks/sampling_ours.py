"""Our side of the sampler's benchmark."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from benchmarks import requests as requests_lib
from palign_jax.checkpoints import hf_import
from palign_jax.core import keys
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.sampling import sampler as sampler_lib
from palign_jax.text import tokenizer as tokenizer_lib


class Sampling:
  """The sampler as the stages run it."""

  def __init__(
      self,
      folder: str,
      requests: Sequence[requests_lib.Request],
      dtype: str,
      num_rows: int,
      prefill_tokens: int,
      temperature: float,
      top_p: float,
  ):
    """Loads.

    Args:
      folder: A checkpoint.
      requests: What to draw.
      dtype: Of weights and computation.
      num_rows: As in config.compute.
      prefill_tokens: Likewise.
      temperature: Of the draws.
      top_p: Likewise.
    """
    mesh = mesh_lib.make({'data': -1, 'fsdp': 1, 'tensor': 1})
    model = hf_import.load(folder, dtype=jnp.dtype(dtype), mesh=mesh)
    self._sampler = sampler_lib.Sampler(
        model.params,
        model.config,
        mesh=mesh,
        dtype=jnp.dtype(dtype),
        num_rows=num_rows,
        stop_ids=(),
        vocab_limit=tokenizer_lib.load(folder).size,
        max_positions=model.max_positions,
        sampling=sampler_lib.SamplingConfig(
            temperature=temperature,
            top_p=top_p,
            top_k=0,
            repetition_penalty=1.0,
        ),
        loop_rule=None,
        prefill_tokens=prefill_tokens,
    )
    self._num_rows = num_rows
    # The length stands for a stop token: the sampler ends a row there and must
    # not plan by it.  What it plans by, the longest of all, is the 512 tokens
    # that anyone would allow (some of 64 prompts' 256 requests reach them).
    self._requests = [
        sampler_lib.Request(
            id=str(i),
            tokens=request.prompt,
            key=keys.fold(0, 'benchmark', i),
            max_tokens=request.length,
        )
        for i, request in enumerate(requests)
    ]

  def warm_up(self) -> None:
    self.run()

  def run(self):
    steps = self._sampler.row_steps
    done = list(self._sampler.run(self._requests))
    drawn = {completion.id: len(completion.tokens) for completion in done}
    for request in self._requests:
      if drawn[request.id] != request.max_tokens:
        raise RuntimeError(f'request {request.id}: {drawn[request.id]} tokens')
    tokens = sum(drawn.values())
    return {
        'tokens': tokens,
        'useful': round(tokens / (self._sampler.row_steps - steps), 4),
        'batch': self._num_rows,
        'programs': len(self._sampler.programs),
    }

  def peak_bytes(self) -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats and stats.get('peak_bytes_in_use')
