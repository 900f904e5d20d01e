"""Compares the accelerator's own attention with float32 XLA on it, and says so.

A script, as the tests' own process sees only CPUs.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from palign_jax.models import flash, kernels
from palign_jax.parallel import mesh as mesh_lib

B, T, N, K, H, M, S = 2, 700, 14, 2, 128, 3, 1024
TOLERANCE = 0.03  # Of values about 1 in bfloat16.


def half(*shape):
  rng = np.random.default_rng(len(shape) * shape[1])
  return jnp.asarray(rng.normal(size=shape), jnp.bfloat16)


def compare(what, fn, plain, *args):
  """Runs `fn` as it is and `plain` in float32."""
  widen = lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x
  with jax.default_matmul_precision('float32'):
    want = jax.jit(plain)(*map(widen, args))
  got = jax.jit(fn)(*args)
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    scale = max(1.0, float(jnp.max(jnp.abs(y))))
    error = float(jnp.max(jnp.abs(x.astype(jnp.float32) - y))) / scale
    print(f'{what}: {error:.4f}', flush=True)
    assert error < TOLERANCE


def gradient(fn):
  square = lambda *qkv: jnp.sum(fn(*qkv).astype(jnp.float32) ** 2)
  return jax.grad(square, (0, 1, 2))


def main():
  mesh = mesh_lib.make({'data': -1, 'fsdp': 1, 'tensor': 1})
  backend = kernels.Backend('auto', mesh)
  name = backend.pick('causal', {})
  print(f'{mesh.devices.flat[0].device_kind}: {name}')
  assert name != 'xla'
  rows = B * mesh.size
  q, k, v = half(rows, T, N, H), half(rows, T, K, H), half(rows, T, K, H)
  segments = np.arange(rows * T).reshape(rows, T) // 99 % 5
  for ids in (None, jnp.asarray(segments, jnp.int32)):
    mine = lambda q, k, v, ids=ids: kernels.causal(backend, q, k, v, ids)
    plain = lambda q, k, v, ids=ids: flash.causal(q, k, v, ids)
    compare('causal', mine, plain, q, k, v)
    compare('gradient', gradient(mine), gradient(plain), q, k, v)

  caches = half(rows, K, H, S), half(rows, K, S, H)
  for own in (1, 4, 128):
    q, k = half(rows, M, own, N, H), half(rows, M, own, K, H)
    seen = jnp.asarray([[0, 700, 257], [S, 7, 0]] * mesh.size, jnp.int32)
    numbers = jnp.asarray([1, 0] * mesh.size, jnp.int32), seen
    mine = functools.partial(kernels.beside, backend)
    xla = functools.partial(kernels.beside, kernels.Backend('xla', mesh))
    compare('beside', mine, xla, q, k, k, *caches, *numbers)


if __name__ == '__main__':
  main()
