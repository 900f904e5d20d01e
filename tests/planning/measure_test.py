"""XLA's refusals are read for how much would be needed."""

import types

import jax
import pytest

from palign_jax.core import errors
from palign_jax.planning import measure

GIB = 2**30
START = 'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM'


@pytest.mark.parametrize(
    'message, need',
    [
        (
            f'{START}, the total memory required for HLO temporaries (240.00G)'
            ' exceeds available HBM (30.75G). HLO module: jit_f.\nSee https:',
            242 * GIB,
        ),
        (
            f'{START}, the total memory required for arguments (20.5G) exceeds'
            ' available HBM (15.75G).',
            20.5 * GIB,
        ),
        (
            'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of'
            ' memory in memory space hbm. Used 512.00M of 15.75G hbm.',
            GIB / 2,
        ),
    ],
)
def test_a_refusal_says_how_much(message, need):
  got = measure.refused(RuntimeError(message), 2 * GIB)
  assert got.need == need and got.collective_bytes is None


def test_a_refusal_without_a_number_does_not_fit():
  got = measure.refused(RuntimeError('RESOURCE_EXHAUSTED: no room'), GIB)
  assert got.need > 1000 * GIB and 'no room' in got.note


def test_another_error_is_no_verdict():
  with pytest.raises(errors.PalignError, match='XLA cannot compile a step for'):
    measure.refused(RuntimeError('INTERNAL: Mosaic failed'), GIB)


def test_a_program_that_xla_did_not_compile_now():
  """As it comes out of JAX's cache: without a dump."""
  lowered = jax.jit(lambda x: 2 * x).lower(jax.ShapeDtypeStruct((8,), 'f4'))
  program = lowered.compile()
  cached = types.SimpleNamespace(compile=lambda compiler_options: program)
  got = measure.compiled(lambda: cached, {'fsdp': 1}, 32)
  assert got == measure.of(program, {'fsdp': 1}) and got.need >= 64
