"""Our side of the judge's benchmark."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness, steering, texts
from palign_jax.checkpoints import hf_import
from palign_jax.judging import (
    calibration,
    judge as judge_lib,
    reread,
    scorer as scorer_lib,
    trace as trace_lib,
    trunk_scorer,
)
from palign_jax.models import decoder
from palign_jax.parallel import memory, mesh as mesh_lib
from palign_jax.text import tokenizer as tokenizer_lib

_PAD = 128  # Widths are multiples of it.


class _Base:
  """A model on all devices, and its tasks."""

  def __init__(self, folder: str, tasks: Sequence[texts.Task], dtype: str):
    self.mesh = mesh_lib.make({'data': -1, 'fsdp': 1, 'tensor': 1})
    self.dtype = jnp.dtype(dtype)
    self.model = hf_import.load(folder, dtype=self.dtype, mesh=self.mesh)
    self.tokenizer = tokenizer_lib.load(folder)
    self.tasks = tasks

  def peak_bytes(self) -> int | None:
    stats = jax.local_devices()[0].memory_stats()
    return stats and stats.get('peak_bytes_in_use')


class Judge(_Base):
  """The judge as `truncate` runs it, from texts to cuts."""

  def __init__(
      self,
      folder: str,
      tasks: Sequence[texts.Task],
      dtype: str,
      case: str,
      judge_tokens: int,
      full: bool = False,
  ):
    """Loads.

    Args:
      folder: A checkpoint.
      tasks: What to judge.
      dtype: Of weights and computation.
      case: A search.
      judge_tokens: As in config.compute.
      full: Whether every probe is read anew, without a shared trunk.
    """
    super().__init__(folder, tasks, dtype)
    self._case = case
    static = dict(mesh=self.mesh, dtype=self.dtype)
    params, config = self.model.params, self.model.config
    if not full:  # As the stages hold them: once, by layer.
      params = decoder.unstack(params, consume=True)
    if full:
      scorer = reread.RereadScorer(
          scorer_lib.Scorer(params, config, max_tokens=judge_tokens, **static)
      )
    else:
      scorer = trunk_scorer.TrunkScorer(
          params,
          config,
          budget=memory.budget(0.0, self.mesh),
          judge_tokens=judge_tokens,
          **static,
      )
    self._judge = judge_lib.LabelJudge(
        scorer,
        self.tokenizer,
        texts.PROMPT,
        calibration=calibration.Calibration(0.5),
        abstain=0.0,
    )

  def warm_up(self) -> None:
    self.run()

  def run(self):
    read, computed = self._judge.read, self._judge.num_tokens
    readings = [
        read(
            trace_lib.Trace(t.id, t.question, t.text, t.ends),
            self.model.max_positions,
        )
        for t in self.tasks
    ]
    by_id = {task.id: task for task in self.tasks}
    begin = lambda reading: steering.begin(self._case, by_id[reading.trace.id])
    found = self._judge.search(readings, begin, lambda count: None)
    margins = [v.margin for f in found.values() for v in f.verdicts.values()]
    return {
        'tokens': sum(len(reading.trunk.tokens) for reading in readings),
        'computed_tokens': self._judge.num_tokens - computed,
        'mean_margin': round(float(np.mean(margins)), 6),
        **steering.facts(found, self.tasks),
    }


@functools.partial(jax.jit, static_argnames=('config', 'dtype'))
def _last_logits(params, tokens, lengths, *, config, dtype):
  positions = jnp.broadcast_to(
      jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
  )
  x = decoder.hidden(params, config, tokens, positions, None, dtype=dtype)
  last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)[:, 0]
  return decoder.logits(params, config, last)


class TrunkPass(_Base):
  """One plain forward pass of all trunks, the head at their last tokens."""

  def __init__(self, folder: str, tasks: Sequence[texts.Task], dtype: str):
    super().__init__(folder, tasks, dtype)
    self._trunks = texts.trunks(self.tokenizer, tasks)
    self._forward = functools.partial(
        _last_logits, config=self.model.config, dtype=self.dtype
    )
    self._batch = 1

  def warm_up(self) -> None:
    is_cpu = jax.default_backend() == 'cpu'
    sizes = harness.batch_sizes(len(self._trunks), is_cpu)
    self._batch = harness.fastest(sizes, lambda n: self._pass(0, n))
    self.run()

  def run(self):
    for begin in range(0, len(self._trunks), self._batch):
      self._pass(begin, self._batch)
    return {'tokens': sum(map(len, self._trunks)), 'batch': self._batch}

  def _pass(self, begin: int, rows: int) -> np.ndarray:
    part = self._trunks[begin : begin + rows]
    tokens, lengths = _padded(part, rows, max(map(len, self._trunks)))
    return np.asarray(self._forward(self.model.params, tokens, lengths))


def _padded(
    rows: Sequence[Sequence[int]], num_rows: int, longest: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns ids padded on the right, and lengths; rows that lack are empty."""
  width = -(-longest // _PAD) * _PAD
  tokens = np.zeros((num_rows, width), np.int32)
  lengths = np.ones(num_rows, np.int32)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], lengths[i] = row, len(row)
  return tokens, lengths
