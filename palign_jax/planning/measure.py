"""What a compiled program takes of a device: memory and communication."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import re
import tempfile

import jax

from palign_jax.core import errors
from palign_jax.parallel import memory
from palign_jax.planning import hlo

_UNTOLD = 2**60  # Bytes: more than there are.
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30}
# How libtpu says what a program would need; the first leaves out arguments.
_TEMPORARIES = re.compile(r'HLO temporaries \(([\d.]+)([KMG]?)\) exceeds')
_TOTAL = re.compile(
    r'(?:required for [^(]*\(|Used )([\d.]+)([KMG]?)(?:\) exceeds| of)'
)


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
    lower: Callable[[], jax.stages.Lowered],
    shape: hlo.Shape,
    held: int,
    num_slices: int = 1,
) -> Measured:
  """Returns what a program takes, having compiled it.

  A program that memory does not hold is refused by XLA, which says how much it
  would take.

  Args:
    lower: Makes it.
    shape: Sizes of the mesh's axes.
    held: Bytes of its arguments on a device.
    num_slices: Over which its first axis goes.

  Raises:
    PalignError: If XLA refuses it for another reason.
  """
  with tempfile.TemporaryDirectory() as folder:
    # XLA's own dump: what it compiled cannot always be printed afterwards
    # ('async-update instruction should have 1 operands but sees 4').
    options = {'xla_dump_to': folder, 'xla_dump_hlo_as_text': True}
    try:
      program = lower().compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      return refused(e, held)
    texts = [
        file.read_text()
        for file in pathlib.Path(folder).glob('*after_optimizations.txt')
    ]
  if not texts:  # The program came from JAX's cache.
    return of(program, shape, num_slices)
  text = max(texts, key=len)
  return Measured(_need(program), *_sent(text, shape, num_slices))


def of(
    program: jax.stages.Compiled, shape: hlo.Shape, num_slices: int = 1
) -> Measured:
  """Returns what a compiled program takes.

  Args:
    program: Of any number of devices.
    shape: Sizes of the mesh's axes.
    num_slices: Over which its first axis goes.
  """
  try:
    text = program.as_text()
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).partition('\n')[0]
    return Measured(_need(program), None, f'XLA cannot print it: {reason}')
  return Measured(_need(program), *_sent(text, shape, num_slices))


def _sent(
    text: str, shape: hlo.Shape, num_slices: int
) -> tuple[dict[str, int] | None, str]:
  """Returns bytes sent by axis, and what to tell of it."""
  try:
    return hlo.collective_bytes(text, shape, num_slices), ''
  except (LookupError, ValueError) as e:  # XLA writes as it likes.
    return None, f'the program cannot be read: {type(e).__name__} {e}'


def _need(program: jax.stages.Compiled) -> int:
  code = program.memory_analysis().generated_code_size_in_bytes
  return memory.needed(program) + code


def refused(cause: Exception, held: int) -> Measured:
  """Returns what XLA says a program would need that memory does not hold.

  Args:
    cause: What XLA raised.
    held: Bytes of the program's arguments on a device.

  Raises:
    PalignError: If it is about anything else.
  """
  message = str(cause).partition('\n')[0]
  if not memory.is_exhausted(cause):
    raise errors.PalignError(
        f'XLA cannot compile a step for this slice: {message}'
    ) from cause
  number = lambda found: int(float(found[1]) * _UNITS[found[2]])
  if found := _TEMPORARIES.search(message):
    return Measured(held + number(found), None, 'XLA refuses it')
  if found := _TOTAL.search(message):
    return Measured(number(found), None, 'XLA refuses it')
  return Measured(_UNTOLD, None, f'XLA refuses it: {message}')
