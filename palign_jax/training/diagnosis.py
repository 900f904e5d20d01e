"""Where a step stopped being finite: parameter, layer or loss, and which rows.

A pass of its own, made when a step has failed: steps that do not fail pay
nothing for it.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import loss as loss_lib

_SHOWN = 8  # Ids in a message.
_OF_LAYER = ('queries', 'keys', 'values', 'attended values')


@dataclasses.dataclass(frozen=True)
class Finding:
  """What is not finite.

  Attributes:
    tensor: The first that is not, in the order of computation; None if the
      whole forward pass is finite.
    rows: The rows whose loss is not, or whose gradient might not be.
  """

  tensor: str | None
  rows: tuple[int, ...]


def examine(
    params: decoder.Params,
    model_config: config_lib.ModelConfig,
    batch: loss_lib.Batch,
    config: loss_lib.LossConfig,
) -> Finding:
  """Looks for what is not finite in the forward pass of a batch.

  Args:
    params: Weights, with adapters joined in if there are any.
    model_config: The model.
    batch: Arrays [microbatch, B, T], as the step got them.
    config: How the loss is computed.
  """
  mesh = config.attention.mesh
  everywhere = mesh_lib.replicated(mesh) if mesh else None
  look = jax.jit(_look, static_argnums=(1, 3), out_shardings=everywhere)
  found = [
      jax.device_get(look(params, model_config, micro, config))
      for micro in _micros(batch)
  ]
  bad_params = found[0]['params']
  rows = np.concatenate([~f['loss'] for f in found])
  every = tuple(range(len(rows)))
  for path, finite in jax.tree_util.tree_leaves_with_path(bad_params):
    if not np.all(finite):
      name = jax.tree_util.keystr(path, simple=True, separator='/')
      return Finding(f'the parameter {name}{_layer(finite)}', every)
  if not rows.any():
    return Finding(None, every)
  kept = np.concatenate([np.stack(f['kept'], 1) for f in found], 2)  # L 4 B
  bad = ~np.all(kept, axis=-1)
  which = tuple(int(i) for i in np.flatnonzero(rows))
  if bad.any():
    layer, part = np.unravel_index(np.argmax(bad), bad.shape)
    return Finding(f'the {_OF_LAYER[part]} of layer {layer}', which)
  hidden = np.concatenate([f['hidden'] for f in found])
  if not hidden.all():
    return Finding('the stream after the last layer', which)
  return Finding('the loss', which)


def _layer(finite: np.ndarray) -> str:
  return f' of layer {int(np.argmin(finite))}' if finite.ndim else ''


def _micros(batch: loss_lib.Batch):
  for i in range(len(batch['tokens'])):
    yield {k: v[i] for k, v in batch.items()}


def _look(params, model_config, batch, config: loss_lib.LossConfig):
  """Returns what is finite: parameters, each layer's parts, rows' losses."""
  rows = lambda x: jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
  used = batch['segments'] > 0

  def attend(_, q, k, v):
    out = kernels.causal(config.attention, q, k, v, batch['segments'])
    hide = lambda x: jnp.where(used[:, :, None, None], x, jnp.zeros_like(x))
    return out, tuple(rows(hide(x)) for x in (q, k, v, out))

  x, kept = decoder.extend(
      params,
      model_config,
      batch['tokens'],
      batch['positions'],
      attend,
      dtype=jnp.dtype(config.dtype),
      lora_scale=config.lora_scale,
      layout=config.layout,
  )
  stacked = params['layers']
  by_layer = lambda x: jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
  whole = lambda x: jnp.all(jnp.isfinite(x))
  ends = {k: v for k, v in params.items() if k != 'layers'}
  return {
      'params': {
          **jax.tree.map(whole, ends),
          'layers': jax.tree.map(by_layer, stacked),
      },
      'kept': kept,
      'hidden': rows(jnp.where(used[..., None], x, jnp.zeros_like(x))),
      'loss': jnp.isfinite(
          loss_lib.row_sums(params, model_config, x, batch, config)
      ),
  }


def text(
    finding: Finding,
    ids: Sequence[Sequence[str]],
    gradient: str | None,
) -> str:
  """Returns what was found, as the end of a sentence.

  Args:
    finding: From `examine`.
    ids: Of the examples in each row of the batch.
    gradient: The parameter whose gradient was the first not finite, if any.
  """
  first = finding.tensor or (gradient and f'the gradient of {gradient}')
  names = [id for row in finding.rows for id in ids[row]]
  shown = ', '.join(names[:_SHOWN])
  more = len(names) - _SHOWN
  shown += f' and {more} more' if more > 0 else ''
  parts = [f'first in {first}'] if first else []
  parts += [f'in the rows of {shown}'] if shown else []
  return ', '.join(parts)


Examine = Callable[[Any, loss_lib.Batch], Finding]
