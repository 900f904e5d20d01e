"""Both systems on one tiny checkpoint, in this process."""

import importlib

from etils import epath
import jax
import numpy as np
import pytest

from benchmarks import harness, rows as rows_lib, sft, sft_work
from palign_jax.checkpoints import hf_import

ARGS = sft.parse(
    ['--shape=tiny', '--tokens=48', '--rows=2', '--steps=4', '--loss_chunk=16']
)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return sft.prepare(ARGS, epath.Path(tmp_path_factory.mktemp('sft')))


def _run(spec):
  module, name = spec.target.split(':')
  system = getattr(importlib.import_module(module), name)(**spec.options)
  system.warm_up()
  return harness.Measured(spec, 0, (0.5,), system.run(), 1)


# PEFT asks transformers by an old name.
@pytest.mark.filterwarnings('ignore:.*is_gradient_checkpointing:FutureWarning')
@pytest.mark.parametrize('case', sft.CASES)
def test_both_systems_learn_alike(made, case, monkeypatch):
  one = jax.devices()[:1]
  monkeypatch.setattr(jax, 'devices', lambda: one)  # As where it is measured.
  measured = [_run(spec) for spec in sft.specs(case, *made, ARGS)]
  error = sft.check(measured, 'float32')
  assert 0 <= error < 1e-4
  ours, torchs = (m.facts for m in measured)
  assert ours['tokens'] == torchs['tokens'] == 96
  assert ours['flops'] == torchs['flops'] > 0
  rows = rows_lib.make('sft', measured, {'loss_error': error})
  row, _ = sft.finish(rows, peak=1e9)
  assert row['mfu'] == pytest.approx(ours['flops'] / 0.5 / 1e9, abs=1e-4)
  assert row['note'].startswith('mfu ')


def test_losses_that_differ_are_found_out():
  spec = lambda name: harness.Spec('lora', name, '', {})
  one = harness.Measured(spec('ours'), 0, (1.0,), {'losses': [2.0, 1.0]}, 1)
  other = harness.Measured(
      spec('torch_strong'), 0, (1.0,), {'losses': [2.0, 1.01]}, 1
  )
  with pytest.raises(RuntimeError, match='are 0.01.* apart'):
    sft.check([one, other], 'float32')
  assert sft.check([one, other], 'bfloat16') == pytest.approx(0.01)
  assert sft.check([one], 'float32') is None
  flat = harness.Measured(spec('ours'), 0, (1.0,), {'losses': [1.0, 1.0]}, 1)
  with pytest.raises(RuntimeError, match='nothing is learnt'):
    sft.check([flat, one], 'float32')


def test_flops_are_those_of_the_products(made):
  config = hf_import.describe(made[0], dtype='float32').config
  work = sft_work.Work(made[0], None, 'float32', 1, 1, 1)
  one = sft_work.flops(config, work, 0)
  # A token alone: two FLOPs per weight, three times; and itself as context.
  D, F, V = config.embed_dim, config.mlp_dim, config.vocab_size
  N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
  weights = 2 * (D * (N + 2 * K) * H + N * H * D + 3 * D * F) + V * D
  assert one == 6 * weights + 3 * 4 * N * H * 2
  frozen = sft_work.Work(made[0], 'adapter', 'float32', 1, 1, 1)
  assert sft_work.flops(config, frozen, 100) == one - 2 * weights + 600


def test_rows_are_the_same_for_all():
  work = sft_work.Work('', None, 'float32', 2, 8, 1)
  np.testing.assert_array_equal(work.tokens(99), work.tokens(99))
  assert work.tokens(99).max() < 99
