"""What a compiled program takes of a device: memory and communication."""

from collections.abc import Callable, Mapping
import dataclasses
import re

import jax

from palign_jax.core import errors
from palign_jax.parallel import memory
from palign_jax.planning import hlo

_UNTOLD = 2**60  # Bytes: more than there are.
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30}
_USED = re.compile(r'Used ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm')


@dataclasses.dataclass(frozen=True)
class Measured:
  """Of one program on one device.

  Attributes:
    need: Bytes: arguments, results, temporaries, and the program itself.
    collective_bytes: Sent, by mesh axis; None if XLA did not get so far.
    note: What to tell of how this was found out.
  """

  need: int
  collective_bytes: Mapping[str, int] | None
  note: str = ''


def compiled(
    lower: Callable[[], jax.stages.Lowered], shape: hlo.Shape
) -> Measured:
  """Returns what a program takes, having compiled it.

  A program that memory does not hold is refused by XLA, which says how much it
  would take.

  Args:
    lower: Makes it.
    shape: Sizes of the mesh's axes.
  """
  try:
    program = lower().compile()
  except jax.errors.JaxRuntimeError as e:
    return refused(str(e), e)
  return of(program, shape)


def of(program: jax.stages.Compiled, shape: hlo.Shape) -> Measured:
  """Returns what a compiled program takes.

  Args:
    program: Of any number of devices.
    shape: Sizes of the mesh's axes.
  """
  code = program.memory_analysis().generated_code_size_in_bytes
  need = memory.needed(program) + code
  try:
    text = program.as_text()
  except jax.errors.JaxRuntimeError as e:  # Too large a program to print.
    reason = str(e).partition('\n')[0]
    return Measured(need, None, f'XLA cannot print the program: {reason}')
  return Measured(need, hlo.collective_bytes(text, shape))


def refused(message: str, cause: BaseException) -> Measured:
  """Returns what XLA says a program would need that memory does not hold.

  Raises:
    PalignError: If it is about anything else.
  """
  used = _USED.search(message)
  if not memory.is_exhausted(cause) and not used:
    reason = message.partition('\n')[0]
    raise errors.PalignError(
        f'XLA cannot compile a step for this slice: {reason}'
    ) from cause
  if not used:
    reason = message.partition('\n')[0]
    return Measured(_UNTOLD, None, f'XLA refuses it: {reason}')
  need = float(used[1]) * _UNITS[used[2]]
  return Measured(int(need), None, 'XLA refuses it')
