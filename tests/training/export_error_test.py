"""What an export has lost is measured on logits, on any mesh, in bounds."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder, lora
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.training import export_error
from tests.training import tiny

EXAMPLES = [tiny.example(i, 30) for i in range(3)]


def measure(joined, merged, examples=EXAMPLES, mesh=None, lora_scale=0.0):
  return export_error.measure(
      joined,
      merged,
      tiny.MODEL,
      examples,
      mesh=mesh or mesh_lib.alone(),
      lora_scale=lora_scale,
  )


def changed(params):
  table = params['embed']['table']
  return {**params, 'embed': {'table': table.at[3].multiply(1.5)}}


@jax.jit
def logits(params, tokens):
  positions = jnp.arange(len(tokens), dtype=jnp.int32)
  x = decoder.hidden(
      params,
      tiny.MODEL,
      tokens[None],
      positions[None],
      None,
      dtype=jnp.float32,
  )
  return decoder.logits(params, tiny.MODEL, x[0])


@functools.cache
def largest_difference():
  """All have at most 64 tokens: every place is looked at."""
  params = tiny.params()
  differences = [
      logits(params, e.tokens) - logits(changed(params), e.tokens)
      for e in EXAMPLES
  ]
  return max(np.abs(x).max() for x in differences)


def test_the_same_weights():
  params = tiny.params()
  assert measure(params, params) == {'max': 0.0, 'argmax_changed': 0.0}


@pytest.mark.parametrize(
    'sizes', [{}, {'data': 2, 'fsdp': 2}, {'tensor': 2, 'sequence': 2}], ids=str
)
def test_a_difference(sizes):
  params = tiny.params()
  mesh = mesh_lib.make(sizes, tiny.devices(4 if sizes else 1))
  axes = decoder.logical_axes(tiny.MODEL)
  params = jax.device_put(params, rules.tree_shardings(params, axes, mesh))
  got = measure(params, changed(params), mesh=mesh)
  np.testing.assert_allclose(got['max'], largest_difference(), rtol=1e-4)
  assert 0 < got['argmax_changed'] < 1


def test_a_merge_loses_rounding_alone():
  adapters = jax.tree.map(lambda x: x + jnp.float32(0.05), tiny.adapters(4))
  params = tiny.params()
  joined = lora.join(params, adapters)
  merged = lora.merge(params, adapters, 2.0)
  got = measure(joined, merged, lora_scale=2.0)
  assert 0 < got['max'] < 1e-4
  assert measure(joined, params, lora_scale=2.0)['max'] > 1e-2


def test_only_the_first_tokens_are_read(monkeypatch):
  monkeypatch.setattr(export_error, '_NUM_TOKENS', 16)
  one = tiny.example(0, 30)
  tokens = np.concatenate([one.tokens[:16], tiny.example(9, 14).tokens])
  other = dataclasses.replace(one, tokens=tokens)
  assert (other.tokens != one.tokens).any()
  params = tiny.params()
  got = [measure(params, changed(params), [x]) for x in (one, other)]
  assert got[0] == got[1]
  assert got[0]['max'] > 0


def test_rows_are_bounded():
  tokens, places = export_error._beginnings([tiny.example(0, 9000)], 2, 3)
  assert tokens.shape == (2, 1026)
  assert places.max() == 1023
  assert not tokens[0, 1024:].any() and not tokens[1].any()
