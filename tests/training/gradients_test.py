"""Of all gradients that are not finite the one born first is named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import decoder
from palign_jax.training import gradients, loss as loss_lib, optim, step
from tests.training import tiny

# rsqrt of it is finite, and its derivative is not.
MODEL = dataclasses.replace(tiny.MODEL, norm_eps=1e-30, tied=False)
NORMED = dataclasses.replace(tiny.MODEL, qk_norm=True)


def params(config):
  """Random weights of a model."""
  rng = np.random.default_rng(0)
  shapes = decoder.abstract(config, jnp.dtype('float32'))
  draw = lambda x: jnp.asarray(rng.normal(0, 0.2, x.shape).astype(np.float32))
  return jax.tree.map(draw, shapes)


def test_the_order_is_that_of_the_backward_pass():
  names = gradients.names(params(dataclasses.replace(NORMED, tied=False)))
  assert names == [
      'lm_head/kernel',
      'final_norm/scale',
      *(
          f'layers/{part} of layer {layer}'
          for layer in (1, 0)
          for part in (
              *('down/kernel', 'gate/kernel', 'up/kernel', 'mlp_norm/scale'),
              *('o/kernel', 'v/bias', 'v/kernel', 'k_norm/scale', 'k/bias'),
              *('k/kernel', 'q_norm/scale', 'q/bias', 'q/kernel'),
              'attn_norm/scale',
          )
      ),
      'embed/table',
  ]
  assert gradients.names(tiny.adapters(2))[:3] == [
      'layers/down/lora_b of layer 1',
      'layers/down/lora_a of layer 1',
      'layers/gate/lora_b of layer 1',
  ]
  assert gradients.names({'b': jnp.ones(2), 'a': jnp.ones(2)}) == ['a', 'b']


def test_squares_are_of_what_the_names_say():
  grads = params(tiny.MODEL)
  got = dict(zip(gradients.names(grads), gradients.squares(grads), strict=True))
  for layer in (0, 1):
    want = np.square(grads['layers']['q']['kernel'][layer]).sum()
    np.testing.assert_allclose(
        got[f'layers/q/kernel of layer {layer}'], want, rtol=1e-5
    )
  want = np.square(grads['embed']['table']).sum()
  np.testing.assert_allclose(got['embed/table'], want, rtol=1e-5)


# A norm of a stream that is zero: its output is zero, its derivative nan.  With
# layer 0 adding nothing the norm before layer 1 is the last that sees one (the
# values of other tokens come in there); with none adding anything, the final.
@pytest.mark.parametrize(
    'silent, want',
    [
        ([0], 'layers/down/kernel of layer 0'),
        ([0, 1], 'layers/down/kernel of layer 1'),
    ],
)
def test_a_nan_born_in_the_backward_pass(silent, want):
  weights = params(MODEL)
  weights['embed']['table'] = weights['embed']['table'].at[7].set(0)
  for part in ('o', 'down'):
    kernel = weights['layers'][part]['kernel']
    kernel = kernel.at[np.array(silent)].set(0)
    weights['layers'][part]['kernel'] = kernel
  batch = tiny.batch([tiny.example(0, 20)])
  batch['tokens'][batch['tokens'] == 7] = 8
  batch['tokens'][0, 5] = 7
  state, scalars = _step(weights, batch)
  assert np.isfinite(scalars['loss']) and np.isnan(scalars['grad_norm'])
  names = gradients.names(state.params)
  assert names[int(scalars['first_bad'])] == want


def _step(weights, batch):
  rate = optim.schedule(tiny.OPTIM, 10)
  optimizer = optim.make(tiny.OPTIM, rate)
  config = loss_lib.LossConfig(
      dtype='float32', remat='none', chunk_size=0, lora_scale=1.0
  )
  pure = step.make(MODEL, config, optimizer, rate, 1.0)
  state = step.init(weights, optimizer)
  run = step.compile(pure, step.StepConfig(1), {}, state, None)
  return run(state, batch)
