"""What is there beside an optimiser step, counted by hand for a small model."""

import pytest

from palign_jax.parallel import memory
from palign_jax.planning import (
    measure,
    peaks,
    roofline,
    search as search_lib,
    steps as steps_lib,
)
from tests.planning import small

# Of both layers; over four devices of fsdp all but biases is split.
ATTENTION, MLP = 2 * (2 * 64 * 64 + 2 * 64 * 32), 2 * 3 * 64 * 128
ENDS, BIASES = 2 * 64 * 64 + (1 + 2 * 2) * 64, 2 * (64 + 2 * 32)
STEPS = 2 * (2 * 64 + 2 * 32 + 2 * 128 + 64)  # One for each output, float32.
WEIGHTS = (ATTENTION + MLP + ENDS) // 4 + BIASES
INT8 = (ATTENTION + MLP + 4 * (STEPS + ENDS)) // 4 + 4 * BIASES
MERGED = 'base and merged weights at once'
LOADED = 'the base as loaded and in 8 bits at once'


def case_of(folder, **changes):
  config = small.config(folder, **changes).to_dict()
  return search_lib.Search(config, small.slice_of()).case({})


def of(case):
  frozen, trained = steps_lib._weights(case)
  return peaks.of(case, frozen, trained), memory.per_device(trained)


def test_a_lora_run_merges_beside_its_base(tmp_path):
  found, adapters = of(case_of(tmp_path))
  # The student computes in float32, the export is bfloat16.
  assert found == {MERGED: (4 + 2) * WEIGHTS + adapters}


def test_the_base_is_there_whole_before_it_is_in_8_bits(tmp_path):
  found, adapters = of(case_of(tmp_path, **{'sft.quantize': 'int8'}))
  assert found[MERGED] == INT8 + (4 + 2) * WEIGHTS + adapters
  # Queries are the first; then a kernel's own 4 bytes are let go.
  assert found[LOADED] == 4 * WEIGHTS + 2 * 64 * 64 // 4 + 4 * 2 * 64 // 4


@pytest.mark.parametrize(
    'dtype, size', [('bfloat16', 4 + 2), ('float32', 4), ('float16', 4 + 2)]
)
def test_full_fine_tuning_casts_what_it_exports(tmp_path, dtype, size):
  changes = {'sft.method': 'full', 'sft.export_dtype': dtype}
  found, _ = of(case_of(tmp_path, **changes))
  assert list(found.values()) == [size * WEIGHTS]


def test_process_0_fetches_a_tensor_at_a_time(tmp_path, monkeypatch):
  case = case_of(tmp_path)
  alone, _ = of(case)
  monkeypatch.setattr(type(case), 'hosts', 2)
  # The largest: a layer's gate, larger than the head of so small a vocabulary.
  assert of(case)[0][MERGED] == alone[MERGED] + 2 * 64 * 128


@pytest.mark.parametrize('need', [1000, 10**9])
def test_the_larger_one_counts(tmp_path, monkeypatch, need):
  measured = measure.Measured(need, {})
  monkeypatch.setattr(roofline, 'bandwidth', lambda *_: 1e9)
  monkeypatch.setattr(measure, 'compiled', lambda *_: measured)
  case = case_of(tmp_path)
  most = of(case)[0][MERGED]
  assert 1000 < most < 10**9
  step = steps_lib.make(case, 'sft')
  assert step.need == step.hbm_bytes['total'] == max(need, most)
  assert (MERGED in step.note) == (need == 1000)
  moments = step.hbm_bytes['optimizer']
  assert bool(moments) == (need == 10**9)
