"""Attention by platform: one function per need, and who computes it.

| need   | xla                | pallas (TPU)      | cudnn (NVIDIA)          |
|--------|--------------------|-------------------|-------------------------|
| causal | `flash.causal`     | splash            | its own; if packed: xla |
| beside | `attention.beside` | `kernels_cache`   | flash with a mask       |
| decode | `sampling.attend`  | `kernels_cache`   | xla                     |

'auto' takes its platform's column where the inputs allow it and xla otherwise;
a column that is named is taken, or refused with the reason.  Kernels cannot be
partitioned by the compiler: each device calls them on its own rows and heads.
"""

from collections.abc import Callable
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from palign_jax.core import errors
from palign_jax.models import (
    attention,
    flash,
    kernels_cache,
    kernels_cudnn,
    kernels_splash,
    remat,
)
from palign_jax.parallel import mesh as mesh_lib, rules

NAMES = ('auto', 'xla', 'cudnn', 'pallas')

_ROWS = mesh_lib.ROWS
_OWN = rules.spec('act_batch', None, 'act_heads')  # [B T N H]
_PART = rules.spec('act_batch', 'act_time', 'act_heads')  # T split too.
_FORKS = rules.spec('act_batch', None, None, 'act_heads')  # [B M T N H]
_CACHE = rules.spec('act_batch', 'act_kv_heads')  # [B K H S]


@dataclasses.dataclass(frozen=True)
class Backend:
  """Who computes attention; hashable, so it may be a static argument.

  Attributes:
    name: A column of the table above, or 'auto'.  'pallas' on a CPU is
      interpreted, which is slow: for tests.
    mesh: Rows lie over its data and fsdp axes, heads over tensor.  Its devices
      may be those of a topology that is only compiled for.  Without one,
      'auto' is 'xla'.
  """

  name: str = 'auto'
  mesh: Mesh | None = None

  def __post_init__(self):
    if self.name not in NAMES:
      raise errors.ConfigError(
          f'No attention is called {self.name!r}; these are:'
          f' {", ".join(NAMES)}.'
      )

  def pick(self, need: str, refusals: dict[str, str | None]) -> str:
    """Returns the column to take.

    Args:
      need: What for, for the message.
      refusals: Why a column cannot be taken; None or absent if it can.

    Raises:
      ConfigError: If a named one cannot.
    """
    if self.name != 'auto':
      self._refuse(refusals.get(self.name), f', for {need!r}')
      return self.name
    best = 'xla' if self.mesh is None else _best(self._device)
    return 'xla' if refusals.get(best) else best

  def check(self, dtype: DTypeLike, H: int) -> None:
    """Raises where a named column will be refused, before anything is traced.

    Args:
      dtype: Of a model's computation.
      H: The width of its heads.

    Raises:
      ConfigError: If its devices are not these, or the model is not for it.
    """
    here = f'these devices are {self._device.device_kind!r}'
    if self.name == 'pallas' and self.platform == 'gpu':
      self._refuse(f'its kernels are for TPUs and {here}')
    if self.name == 'cudnn':
      if _best(self._device) != 'cudnn':
        self._refuse(f'it needs NVIDIA GPUs and {here}')
      self._refuse(kernels_cudnn.refusal(jnp.dtype(dtype), H))

  def _refuse(self, reason: str | None, need: str = '') -> None:
    """Raises if there is a reason."""
    if reason:
      raise errors.ConfigError(
          f'config.compute.attention is {self.name!r}{need}: {reason}; take'
          " 'auto' or 'xla'."
      )

  @property
  def _device(self):
    return jax.devices()[0] if self.mesh is None else self.mesh.devices.flat[0]

  @property
  def platform(self) -> str:
    """What is compiled for: 'cpu', 'gpu' or 'tpu'."""
    return self._device.platform

  @property
  def interpret(self) -> bool:
    """Whether there is no TPU to run a TPU's kernel on."""
    return self.platform != 'tpu'


XLA = Backend('xla')
_named = functools.partial(remat.named, name=remat.ATTENTION)


def _best(device) -> str:
  if device.platform == 'tpu':
    return 'pallas'
  return 'cudnn' if 'NVIDIA' in device.device_kind else 'xla'


def causal(
    backend: Backend,
    q: Float[Array, 'B T N H'],
    k: Float[Array, 'B T K H'],
    v: Float[Array, 'B T K H'],
    segments: Int[Array, 'B T'] | None,
) -> Float[Array, 'B T N H']:
  """Attends to one's own sequence; see `flash.causal`.

  Packed rows never reach cuDNN, whose form in JAX would mix their sequences.

  Args:
    backend: Who computes.
    q: Queries, rotated.
    k: Keys, rotated.
    v: Values.
    segments: Which sequence of its row each token belongs to, or None.

  Raises:
    ConfigError: If the named backend cannot take these inputs.
  """
  uneven = _uneven(backend.mesh, q.shape[0], k.shape[2])
  if mesh_lib.num_parts(backend.mesh) > 1:
    return _in_parts(backend, q, k, v, segments, uneven)
  cudnn = uneven or kernels_cudnn.refusal(q.dtype, q.shape[-1])
  if segments is not None:
    cudnn = 'it cannot keep the sequences of packed rows apart'
  name = backend.pick('causal', {'cudnn': cudnn, 'pallas': uneven})
  if name == 'xla' and uneven:  # All devices compute all, or XLA finds a way.
    return flash.causal(q, k, v, segments)
  args, specs = (q, k, v), (_OWN,) * 3
  if segments is not None:
    args, specs = (*args, segments), (*specs, _ROWS)
  kernel = {
      'xla': flash.causal,
      'cudnn': lambda q, k, v, _: _named(kernels_cudnn.causal(q, k, v)),
      'pallas': functools.partial(
          kernels_splash.causal, interpret=backend.interpret
      ),
  }[name]
  run = lambda q, k, v, segments=None: kernel(q, k, v, segments)
  return _each(backend, run, specs, _OWN)(*args)


def _in_parts(backend: Backend, q, k, v, segments, uneven: str | None):
  """Attends from the tokens that a device has to those of all its row.

  Keys and values of the row are gathered; queries stay where they are.
  """
  mesh, parts = backend.mesh, mesh_lib.num_parts(backend.mesh)
  T, N = q.shape[1:3]
  if T % parts:
    uneven = f'rows of {T} tokens do not split {parts} ways over sequence'
  if uneven:
    raise errors.ConfigError(f'attention: {uneven}; change config.mesh.')
  refusals = {
      'cudnn': 'it takes whole rows, and config.mesh.sequence splits them',
      'pallas': kernels_splash.refusal(T, parts),
  }
  name = backend.pick('causal', refusals)
  if segments is None:
    segments = jnp.zeros(q.shape[:2], jnp.int32)
  row = lambda x: jax.lax.all_gather(x, 'sequence', axis=1, tiled=True)
  specs = (_PART, _PART, _PART, mesh_lib.TOKENS)
  if name == 'pallas':
    heads = N // mesh.shape['tensor']
    kernel = kernels_splash.in_parts(T, heads, parts, backend.interpret)

    def splash(kernel, q, k, v, segments):
      rest = row(k), row(v), segments, row(segments)
      return kernels_splash.part(kernel, q, *rest)

    specs = (kernels_splash.sharding_spec(kernel, mesh), *specs)
    return _each(backend, splash, specs, _PART)(kernel, q, k, v, segments)

  def part(q, k, v, segments):
    first = jax.lax.axis_index('sequence') * q.shape[1]
    rest = row(k), row(v), segments, row(segments)
    return _named(attention.part(q, *rest, first))

  return _each(backend, part, specs, _PART)(q, k, v, segments)


def beside(
    backend: Backend,
    q: Float[Array, 'B M T N H'],
    k: Float[Array, 'B M T K H'],
    v: Float[Array, 'B M T K H'],
    keys: Float[Array, 'R K H S'],
    values: Float[Array, 'R K S H'],
    rows: Int[Array, ' B'],
    seen: Int[Array, 'B M'],
) -> Float[Array, 'B M T N H']:
  """Attends to a trunk's beginning and a fork's own; see `attention.beside`.

  Args:
    backend: Who computes.
    q: Queries, rotated.
    k: Keys of the forks' own tokens, rotated.
    v: Their values.
    keys: Of all trunks, rotated.
    values: Of all trunks.
    rows: Which trunk each of the B rows reads, among those of its device.
    seen: How many tokens of it each fork sees.

  Raises:
    ConfigError: If the named backend cannot take these inputs, or if rows or
      heads do not split over the mesh.
  """
  uneven = _uneven(backend.mesh, k.shape[0], k.shape[3])
  if uneven:
    raise errors.ConfigError(f'attention: {uneven}; change config.mesh.')
  refusals = {
      'cudnn': kernels_cudnn.refusal(q.dtype, q.shape[-1]),
      'pallas': odd(keys.shape[3]),
  }
  kernels = {
      'xla': attention.beside,
      'cudnn': kernels_cudnn.beside,
      'pallas': functools.partial(
          kernels_cache.beside, interpret=backend.interpret
      ),
  }
  kernel = kernels[backend.pick('beside', refusals)]
  specs = (_FORKS, _FORKS, _FORKS, _CACHE, _CACHE, _ROWS, _ROWS)
  args = q, k, v, keys, values, rows, seen
  return _each(backend, kernel, specs, _FORKS)(*args)


def odd(S: int) -> str | None:
  """Returns why a TPU's kernel cannot read a cache of S slots, if so."""
  if S % kernels_cache.LANES:
    return f'a cache of {S} slots is no multiple of {kernels_cache.LANES}'
  return None


def _uneven(mesh: Mesh | None, num_rows: int, num_heads: int) -> str | None:
  """Returns why devices cannot each take their rows and heads."""
  if mesh is None:
    return None
  rows, heads = mesh_lib.num_row_shards(mesh), mesh.shape['tensor']
  if num_rows % rows:
    return f'{num_rows} rows do not split {rows} ways over data and fsdp'
  if num_heads % heads:
    return f'{num_heads} key-value heads do not split {heads} ways over tensor'
  return None


def _each(backend: Backend, kernel: Callable, specs, out) -> Callable:
  """Returns the kernel as each device of the mesh runs it on what it holds."""
  mesh = backend.mesh
  if mesh is None or mesh.size == 1:
    return kernel
  return jax.shard_map(
      kernel, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False
  )
