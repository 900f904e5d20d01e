"""What is not finite is named: parameter, layer or loss, and which rows."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from palign_jax.models import kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import diagnosis, step
from tests.training import tiny


def rows():
  return tiny.batch(
      [tiny.example(0, 12), tiny.example(1, 9)],
      [tiny.example(2, 30)],
      [tiny.example(3, 20)],
      [tiny.example(4, 7)],
  )


def examine(params, batch, mesh=None, num_microbatches=2):
  config = dataclasses.replace(
      tiny.LOSS, attention=kernels.Backend('auto', mesh)
  )
  arrays = step.place(batch, step.StepConfig(num_microbatches), mesh)
  return diagnosis.examine(params, tiny.MODEL, arrays, config)


def test_nothing_wrong():
  finding = examine(tiny.params(), rows())
  assert finding == diagnosis.Finding(None, (0, 1, 2, 3))
  got = diagnosis.text(finding, rows().ids, 'layers/q/kernel')
  assert got == (
      'first in the gradient of layers/q/kernel, in the rows of e0, e1, e2, e3,'
      ' e4'
  )


def test_a_parameter():
  params = tiny.params()
  up = params['layers']['up']
  up['kernel'] = up['kernel'].at[1, 0, 0].set(jnp.nan)
  finding = examine(params, rows())
  assert finding.tensor == 'the parameter layers/up/kernel of layer 1'
  assert finding.rows == (0, 1, 2, 3)


@pytest.mark.parametrize('sizes', [None, {'data': 2, 'sequence': 2}])
def test_a_layer_and_its_rows(sizes):
  mesh = sizes and mesh_lib.make(sizes, tiny.devices(4))
  params, batch = tiny.params(), rows()
  # Only row 1 holds token 7, and only token 7 has anything in channel 0, of
  # which the MLP of layer 0 makes more than a float holds.
  batch['tokens'][batch['tokens'] == 7] = 8
  batch['tokens'][1, 4] = 7
  table, layers = params['embed']['table'], params['layers']
  params['embed']['table'] = table.at[:, 0].set(0).at[7, 0].set(1)
  norm, o = layers['mlp_norm'], layers['o']
  norm['scale'] = norm['scale'].at[0, 0].set(1)
  o['kernel'] = o['kernel'].at[0, :, :, 0].set(0)
  for part in (layers['gate'], layers['up']):
    part['kernel'] = part['kernel'].at[0, 0].set(jnp.float32(1e25))
  finding = examine(params, batch, mesh)
  assert finding.tensor == 'the queries of layer 1'
  assert finding.rows == (1,)
  assert diagnosis.text(finding, batch.ids, None) == (
      'first in the queries of layer 1, in the rows of e2'
  )


def test_the_loss():
  batch = rows()
  batch['weights'][3, 5] = np.inf
  finding = examine(tiny.params(), batch)
  assert finding == diagnosis.Finding('the loss', (3,))


def test_many_ids_are_cut_short():
  finding = diagnosis.Finding('the loss', (0,))
  got = diagnosis.text(finding, [[f'e{i}' for i in range(11)]], None)
  assert got.endswith('e6, e7 and 3 more')
  assert diagnosis.text(diagnosis.Finding(None, ()), [], None) == ''
