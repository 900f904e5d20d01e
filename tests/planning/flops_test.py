"""The formulas count what the model computes, product by product."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import pytest

from palign_jax.models import decoder, presets
from palign_jax.planning import flops
from tests.models import tiny

QWEN = presets.PRESETS['Qwen/Qwen2.5-7B-Instruct'].model


def test_weights_are_those_of_the_model():
  shapes = decoder.abstract(QWEN, jnp.bfloat16)
  kernels = [
      x.size
      for path, x in jax.tree_util.tree_leaves_with_path(shapes['layers'])
      if path[-1].key == 'kernel'
  ]
  assert QWEN.num_layers * flops.layer_weights(QWEN) == sum(kernels)
  head = shapes['lm_head']['kernel'].size
  assert flops.head_weights(QWEN) == head
  assert flops.weight_bytes(QWEN) == 2 * (sum(kernels) + head)
  assert flops.kv_bytes(QWEN) == 57_344


def test_reading_is_what_xla_counts():
  """XLA's count holds where there is no loop: layers that are not scanned."""
  config = dataclasses.replace(tiny.CONFIG, num_layers=2)
  B, T = 2, 32
  params = decoder.abstract(config, jnp.float32)

  def run(params, tokens):
    layers = params['layers']
    each = [
        jax.tree.map(lambda x, i=i: x[i], layers)
        for i in range(config.num_layers)
    ]
    x = decoder.hidden(
        {**params, 'layers': tuple(each)},
        config,
        tokens,
        jnp.arange(T, dtype=jnp.int32)[None].repeat(B, 0),
        None,
        dtype=jnp.float32,
    )
    return decoder.logits(params, config, x)

  tokens = jax.ShapeDtypeStruct((B, T), jnp.int32)
  text = jax.jit(run).lower(params, tokens).as_text()
  # Attention of so few tokens is one block, without the causal half.
  want = flops.reading(config, B * T, float(T), B * T).model
  assert _products(text) == want


def _products(text: str) -> int:
  """Returns the FLOPs of all products in StableHLO without loops."""
  sizes = lambda tensor: [int(n) for n in tensor.split('x')[:-1]]
  total = 0
  for contracted, left, out in re.findall(
      r'dot_general.*contracting_dims = \[([\d, ]+)\] x'
      r'.*: \(tensor<(\w+)>, tensor<\w+>\) -> tensor<(\w+)>',
      text,
  ):
    inside = [sizes(left)[int(axis)] for axis in contracted.split(',')]
    total += 2 * math.prod(inside) * math.prod(sizes(out))
  return total


def test_training_is_reading_and_its_gradients():
  tokens, length = 8192, 8192
  forward = flops.reading(QWEN, tokens, length / 2, tokens).model
  head = 2 * tokens * flops.head_weights(QWEN)
  attention = tokens * 28 * 4 * 28 * 128 * length / 2
  again = lambda **what: flops.Again(
      **{'products': False, 'attention': False} | what
  )
  train = lambda **changes: flops.training(
      QWEN,
      **dict(tokens=tokens, length=length, adapters=0, again=again()) | changes,
      splash=False,
  )
  full = train()
  assert full.model == pytest.approx(3 * forward)
  assert full.executed == full.model
  dots = train(again=again(attention=True))
  assert dots.executed - full.executed == pytest.approx(attention)
  all_of_it = train(again=again(products=True, attention=True))
  assert all_of_it.executed == pytest.approx(4 * forward - head)
  # Frozen weights need no gradient of their own; adapters are small.
  lora = train(adapters=40_370_176)
  adapters = 3 * 2 * tokens * 40_370_176
  assert lora.model == pytest.approx(2 * forward + attention + adapters)
