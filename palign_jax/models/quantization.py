"""A frozen base in int8: half the memory of bfloat16, for adapters to learn on.

Each output of a projection has a step of its own, the largest of its weights
over 127.  The product is computed with the integers, in the dtype of the
computation, and multiplied by the step afterwards.  Embeddings, head, norms and
biases stay as they are.

Error (tests/models/quantization_test.py): each weight within half a step; the
logits of a small random model move by about 1% of their spread.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import rules

_LARGEST = 127  # Of int8, symmetric.


def quantize(
    params: decoder.Params,
    config: config_lib.ModelConfig,
    mesh: Mesh | None = None,
) -> decoder.Params:
  """Returns the weights with the layers' kernels as int8 and steps, float32.

  Args:
    params: Stacked weights.  Their kernels are deleted one after the other, so
      that there are never two copies of all.
    config: The model.
    mesh: Where the result lies, by parallel/rules.py; None as XLA chooses.
  """
  axes = decoder.logical_axes(config, quantized=True)['layers']
  layers = {}
  for name, parts in params['layers'].items():
    if name not in decoder.PROJECTIONS:
      layers[name] = parts
      continue
    run = functools.partial(_quantize, num_inputs=2 if name == 'o' else 1)
    where = None
    if mesh is not None:
      where = tuple(
          rules.sharding(
              f'layers/{name}/{part}', x.shape, axes[name][part], mesh
          )
          for part, x in zip(
              ('kernel', 'kernel_scale'),
              jax.eval_shape(run, parts['kernel']),
              strict=True,
          )
      )
    kernel, scale = jax.jit(run, out_shardings=where)(parts['kernel'])
    jax.block_until_ready(kernel)
    parts['kernel'].delete()
    layers[name] = {**parts, 'kernel': kernel, 'kernel_scale': scale}
  return {**params, 'layers': layers}


def _quantize(kernel: jax.Array, *, num_inputs: int):
  """Returns int8 [L in... out...] and float32 [L out...]."""
  into = tuple(range(1, 1 + num_inputs))
  x = kernel.astype(jnp.float32)
  largest = jnp.max(jnp.abs(x), axis=into, keepdims=True)
  # An output whose weights are all zero has any step.
  step = jnp.where(largest > 0, largest, jnp.float32(1)) / _LARGEST
  return jnp.round(x / step).astype(jnp.int8), jnp.squeeze(step, into)
