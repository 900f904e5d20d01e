"""The programs that read trunks and forks: of how many rows, in which memory.

Each is compiled at its first use.  Numbers of rows are powers of two and widths
come in steps, so that few programs serve all traces of a capacity.
"""

from collections.abc import Callable
import functools
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import memory, mesh as mesh_lib
from palign_jax.sampling import buckets

CHUNK = 128  # Tokens of a trunk that are read together.
_FORKS = 16  # Of one trunk that are read together, if it has many.
_FEW = 4  # Up to so many are read one by one.
_ROWS = 32  # Of a program, at most: each is some instructions more.
_SINGLE = 16  # Of them, at most, where each has a single fork.
_WIDTHS = 8, 32  # Tokens of forks that memory is sized for; most have 8.
_MOST = _ROWS * _FORKS * _WIDTHS[-1]  # Of them together; longer ones are fewer.
_ALIKE = 64  # Tokens of a program, at least: with fewer, XLA's products on a
# CPU add up in another order.


def capacity(length: int) -> int:
  """Returns how many tokens are kept room for: 256, 512, 768, 1024, ..."""
  return max(256, buckets.capacity(length))


def fork_width(length: int) -> int:
  """Returns the padded length of a fork: 4, 8, 12, 16, 24, 32, 48, 64, ..."""
  if length <= 16:
    return -(-length // 4) * 4
  octave = 1 << (length - 1).bit_length() - 1
  return octave * 3 // 2 if length <= octave * 3 // 2 else octave * 2


class Programs:
  """Programs of one model on one mesh.

  A row shard is a group of devices that holds one copy of the rows
  (mesh.tensor).  Of its rows of a cache one is spare: what a call has no use
  for goes there.

  Attributes:
    params: Weights, by layer.
    mesh: Where they lie.
    num_shards: Row shards.
    dtype: Of the computation and of caches.
    compiled: The programs so far, by kind and shapes.
  """

  def __init__(
      self,
      params: decoder.Params,
      config: config_lib.ModelConfig,
      *,
      mesh: Mesh,
      dtype: DTypeLike,
      judge_tokens: int,
      lora_scale: float,
      attention: str,
  ):
    """Compiles nothing yet; arguments are those of `TrunkScorer`."""
    self.params, self.mesh = decoder.unstack(params), mesh
    self.dtype = jnp.dtype(dtype)
    self.num_shards = mesh_lib.num_row_shards(mesh)
    self.compiled: dict[tuple[str | int, ...], jax.stages.Compiled] = {}
    self._config = config
    self._judge_tokens = max(judge_tokens, CHUNK)
    self._static = {
        'config': config,
        'backend': kernels.Backend(attention, mesh),
        'dtype': self.dtype,
        'lora_scale': lora_scale,
    }

  def narrow(self) -> bool:
    """Reads half as many tokens together from now on, if there are two chunks.

    Returns:
      Whether it does: False if no fewer can be read.
    """
    if self._judge_tokens < 2 * CHUNK:
      return False
    self._judge_tokens //= 2
    return True

  # Of how many rows.

  def chunk_rows(self, num_rows: int, wanted: int) -> int:
    """Returns how many trunks of a row shard are read together.

    Args:
      num_rows: Trunks of a row shard.
      wanted: How many of them are to be read.
    """
    most = min(self._judge_tokens // CHUNK, _ROWS, num_rows)
    return _step(most, wanted)

  def num_forks(self, wanted: int, width: int) -> int:
    """Returns how many forks of a trunk are read as one row.

    Args:
      wanted: Of the trunk.
      width: Of a fork, in tokens.
    """
    num = _FORKS if wanted > _FEW else 1
    while num > 1 and num * width > min(self._judge_tokens, _MOST):
      num //= 2
    return num

  def fork_rows(self, num_forks: int, width: int, wanted: int) -> int:
    """Returns how many rows of forks a row shard reads together.

    Args:
      num_forks: Of a row.
      width: Of a fork, in tokens.
      wanted: How many rows are to be read.
    """
    tokens = num_forks * width
    most = min(max(min(self._judge_tokens, _MOST) // tokens, 1), _ROWS)
    if num_forks == 1:
      most = min(most, _SINGLE)
    return _step(most, wanted, least=-(-_ALIKE // tokens))

  # The programs.

  def abstract_cache(self, num_rows: int, size: int) -> Any:
    """Returns the shapes of a cache with one spare row per row shard."""
    total = self.num_shards * (num_rows + 1)
    make = functools.partial(
        decoder.new_cache, self._config, total, size, self.dtype
    )
    where = NamedSharding(self.mesh, decoder.CACHE)
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
        jax.eval_shape(make),
    )

  def new_cache(self, num_rows: int, size: int) -> decoder.Cache:
    """Returns an empty cache; see `abstract_cache`."""
    shapes = self.abstract_cache(num_rows, size)
    make = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    where = jax.tree.map(lambda x: x.sharding, shapes)
    return self._compile(('empty', num_rows, size), make, out_shardings=where)()

  def trunks(
      self, num_rows: int, size: int, per_shard: int
  ) -> jax.stages.Compiled:
    """Returns what reads a chunk of some trunks of a cache.

    Args:
      num_rows: Trunks of a row shard.
      size: As of `capacity`.
      per_shard: How many of them are read.
    """
    B = self.num_shards * per_shard
    cache = self.abstract_cache(num_rows, size)
    return self._compile(
        ('trunks', num_rows, size, per_shard),
        functools.partial(_grow, **self._static),
        self.params,
        cache,
        self._shape(B, CHUNK),
        self._shape(B),
        self._shape(B),
        out_shardings=jax.tree.map(lambda x: x.sharding, cache),
        donate_argnums=(1,),
    )

  def forks(
      self,
      num_rows: int,
      size: int,
      num_forks: int,
      width: int,
      per_shard: int,
  ) -> jax.stages.Compiled:
    """Returns what scores forks.

    Args:
      num_rows: Trunks of a row shard.
      size: As of `capacity`.
      num_forks: Of a row, all of one trunk.
      width: Of a fork, in tokens.
      per_shard: Rows that a row shard reads.
    """
    B = self.num_shards * per_shard
    M = num_forks
    return self._compile(
        ('forks', num_rows, size, num_forks, width, per_shard),
        functools.partial(_score, **self._static),
        self.params,
        self.abstract_cache(num_rows, size),
        self._shape(B, M, width),
        self._shape(B, M),
        self._shape(B),
        self._shape(B, M),
        self._shape(B, M, 2),
        out_shardings=mesh_lib.replicated(self.mesh),
    )

  def _compile(self, key: tuple, function: Callable, *args, **options):
    """Returns a program, compiled at its first use."""
    if key not in self.compiled:
      logging.info('Compiling the judge for %s.', key)
      lowered = jax.jit(function, **options).lower(*args)
      self.compiled[key] = lowered.compile()
    return self.compiled[key]

  def _shape(self, *shape: int) -> jax.ShapeDtypeStruct:
    where = mesh_lib.rows(self.mesh)
    return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=where)

  # The greediest of them, by which memory is sized.

  def chunk_shape(self, num_rows: int) -> tuple[int, int]:
    """Returns rows and tokens of the chunk that `greediest_trunks` reads."""
    return self.num_shards * self.chunk_rows(num_rows, num_rows), CHUNK

  def greediest_trunks(self, num_rows: int, size: int) -> jax.stages.Compiled:
    """Returns the greediest program that reads trunks.

    Args:
      num_rows: Trunks of a row shard.
      size: As of `capacity`.

    Raises:
      OutOfMemory: If XLA has no room for it.
    """
    with memory.guard():
      per_shard = self.chunk_rows(num_rows, num_rows)
      return self.trunks(num_rows, size, per_shard)

  def greediest_forks(
      self, num_rows: int, size: int
  ) -> list[jax.stages.Compiled]:
    """Returns the greediest programs that read forks; see `greediest_trunks`.

    One trunk may have as many forks as a program has rows for.
    """
    with memory.guard():
      return [
          self.forks(num_rows, size, *shape) for shape in self.fork_shapes()
      ]

  def fork_shapes(self) -> list[tuple[int, int, int]]:
    """Returns (forks of a row, width, rows) of the greediest programs."""
    shapes = [
        (self.num_forks(wanted, width), width)
        for wanted in (1, _FORKS)
        for width in _WIDTHS
    ]
    return [(*shape, self.fork_rows(*shape, _ROWS)) for shape in shapes]

  def held(self, num_rows: int, size: int) -> int:
    """Returns the bytes of weights and a cache on one device."""
    cache = self.abstract_cache(num_rows, size)
    return memory.per_device(self.params) + memory.per_device(cache)

  def most_for_forks(self, num_rows: int, size: int) -> int:
    """Returns bytes that no program of forks exceeds; compiles none of them.

    What a program takes beside weights and cache grows with its rows or its
    tokens: by these we go up from the chunk's, and double that, as it is by
    estimate (on a CPU half as much again has been seen).
    """
    use = self.greediest_trunks(num_rows, size).memory_analysis()
    rows = self.chunk_rows(num_rows, num_rows)
    times = max(
        per_shard * max(num_forks * width / CHUNK, 1) / rows
        for num_forks, width, per_shard in self.fork_shapes()
    )
    return self.held(num_rows, size) + int(2 * times * use.temp_size_in_bytes)


def _grow(params, cache, tokens, rows, begins, **static):
  config = static.pop('config')
  return decoder.grow(params, config, tokens, rows, begins, cache, **static)


def _score(params, cache, tokens, lengths, rows, seen, pairs, **static):
  config = static.pop('config')
  x = decoder.forks(
      params, config, tokens, lengths, rows, seen, cache, **static
  )
  return decoder.margins(params, config, x, pairs)


def _step(most: int, wanted: int, least: int = 1) -> int:
  """Returns `most`, or that halved as long as it holds what is wanted.

  Few sizes, as each is a program.
  """
  while most // 2 >= max(wanted, least):
    most //= 2
  return most
