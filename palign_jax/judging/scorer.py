"""Log-odds of two tokens at the end of each of many prompts.

A batch is bounded in tokens; its width follows from the row alone and its
number of rows from the width, so a row's result does not depend on which rows
it shares a batch with.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
import numpy as np

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Question:
  """A text, and the two tokens between which it must go on."""

  tokens: Sequence[int]
  yes: int
  no: int


def width(length: int) -> int:
  """Returns the padded width of a row: 64, 96, 128, 192, 256, 384, ..."""
  size = 64
  while size < length:
    if size * 3 // 2 >= length:
      return size * 3 // 2
    size *= 2
  return size


@functools.partial(
    jax.jit, static_argnames=('config', 'dtype', 'lora_scale', 'backend')
)
def _margins(
    params: decoder.Params,
    tokens: Int[Array, 'B T'],
    lengths: Int[Array, ' B'],
    pairs: Int[Array, 'B 2'],
    *,
    config: config_lib.ModelConfig,
    dtype: DTypeLike,
    lora_scale: float,
    backend: kernels.Backend,
) -> Float[Array, ' B']:
  positions = jnp.broadcast_to(
      jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape
  )
  x_BTD = decoder.hidden(
      params,
      config,
      tokens,
      positions,
      None,
      dtype=dtype,
      lora_scale=lora_scale,
      backend=backend,
  )
  x_BD = jnp.take_along_axis(x_BTD, (lengths - 1)[:, None, None], axis=1)[:, 0]
  logits_BV = decoder.logits(params, config, x_BD)
  chosen = jnp.take_along_axis(logits_BV, pairs, axis=1)
  return chosen[:, 0] - chosen[:, 1]


class Scorer:
  """Scores prompts with one model."""

  def __init__(
      self,
      params: decoder.Params,
      config: config_lib.ModelConfig,
      *,
      mesh: Mesh,
      dtype: DTypeLike,
      max_tokens: int,
      lora_scale: float = 0.0,
      attention: str = 'auto',
  ):
    """Takes the weights as they lie on the mesh.

    Args:
      params: Stacked weights.
      config: The model.
      mesh: Rows are split over its data and fsdp axes.
      dtype: Of the computation.
      max_tokens: Of a batch, padding included; one row per group of devices
        is always computed.
      lora_scale: alpha / rank of the adapters.
      attention: Who computes it, one of `kernels.NAMES`.
    """
    self._params, self._mesh, self._max_tokens = params, mesh, max_tokens
    self._margins = functools.partial(
        _margins,
        config=config,
        dtype=jnp.dtype(dtype),
        lora_scale=lora_scale,
        backend=kernels.Backend(attention, mesh),
    )

  def narrow(self) -> bool:
    """Halves the tokens of a batch; False if they are one row's at most."""
    if self._max_tokens < 2 * width(1):
      return False
    self._max_tokens //= 2
    return True

  def score(
      self,
      questions: Sequence[Question],
      advance: Callable[[int], object] = lambda count: None,
  ) -> np.ndarray:
    """Returns log p(yes) - log p(no) of each, float32, in nats."""
    by_width: dict[int, list[int]] = {}
    for i, question in enumerate(questions):
      by_width.setdefault(width(len(question.tokens)), []).append(i)
    margins = np.zeros(len(questions), np.float32)
    for size, indices in sorted(by_width.items()):
      rows = self._rows(size)
      for begin in range(0, len(indices), rows):
        batch = indices[begin : begin + rows]
        margins[batch] = self._batch([questions[i] for i in batch], size, rows)
        advance(len(batch))
    return margins

  def _rows(self, size: int) -> int:
    shards = mesh_lib.num_row_shards(self._mesh)
    return max(self._max_tokens // size, 1) * shards

  def _batch(self, questions, size: int, rows: int) -> np.ndarray:
    tokens = np.zeros((rows, size), np.int32)
    lengths, pairs = np.ones(rows, np.int32), np.zeros((rows, 2), np.int32)
    for i, question in enumerate(questions):
      lengths[i] = len(question.tokens)
      tokens[i, : lengths[i]] = question.tokens
      pairs[i] = question.yes, question.no
    put = lambda x: jax.device_put(x, mesh_lib.rows(self._mesh))
    margins = self._margins(self._params, *map(put, (tokens, lengths, pairs)))
    return np.asarray(margins)[: len(questions)]
