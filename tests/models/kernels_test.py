"""Whoever computes attention, it is the same attention."""

import functools
import os
import pathlib
import re
import subprocess
import sys
from unittest import mock

import jax
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from palign_jax.core import errors
from palign_jax.models import (
    flash,
    kernels,
    kernels_cache,
    kernels_cudnn,
    kernels_splash,
)
from palign_jax.parallel import mesh as mesh_lib

AXES = ('data', 'fsdp', 'tensor')
ROWS = PartitionSpec(('data', 'fsdp'))
OWN = PartitionSpec(('data', 'fsdp'), None, 'tensor')
FORKS = PartitionSpec(('data', 'fsdp'), None, None, 'tensor')
CACHE = PartitionSpec(('data', 'fsdp'), 'tensor')
PALLAS = kernels.Backend('pallas')
B, N, K, H = 2, 6, 2, 16


def normal(*shape, seed=0):
  rng = np.random.default_rng([seed, *shape])
  return jnp.asarray(rng.normal(size=shape), jnp.float32)


def dense(q, k, v, mask):
  """Attention of one row in float64: q [T N H], k and v [S K H], mask [T S]."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (k, v))
  score = np.einsum('TNH,SNH->NTS', q, k) * q.shape[-1] ** -0.5
  p = np.exp(score - score.max()) * np.asarray(mask)
  return np.einsum('NTS,SNH->TNH', p / p.sum(axis=-1, keepdims=True), v)


def close(got, want, atol=2e-6):
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)


# Causal: own sequence.


@pytest.fixture(name='own', scope='module')
def fixture_own():
  T = 200  # Two of the kernel's blocks, the last of them short.
  qkv = normal(B, T, N, H), normal(B, T, K, H), normal(B, T, K, H, seed=1)
  segments = np.arange(B * T).reshape(B, T) // 77 % 5
  return (*qkv, jnp.asarray(segments, jnp.int32))


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('name', ['xla', 'pallas'])
def test_causal(own, name, packed, monkeypatch):
  monkeypatch.setattr(kernels_splash, '_BLOCK', 128)
  *qkv, segments = own
  attend = jax.jit(functools.partial(kernels.causal, kernels.Backend(name)))
  got = attend(*qkv, segments if packed else None)
  for b in range(B):
    mask = np.tri(200, dtype=bool)
    if packed:
      mask = mask & (segments[b][:, None] == segments[b][None])
    close(got[b], dense(*(x[b] for x in qkv), mask))


def test_gradient_of_splash(own, monkeypatch):
  monkeypatch.setattr(kernels_splash, '_BLOCK', 128)
  *qkv, segments = own
  weight = normal(B, 200, N, H, seed=2)

  def loss(backend, *qkv):
    return jnp.sum(kernels.causal(backend, *qkv, segments) * weight)

  grad = jax.jit(jax.grad(loss, (1, 2, 3)), static_argnums=0)
  for got, want in zip(
      grad(PALLAS, *qkv), grad(kernels.XLA, *qkv), strict=True
  ):
    close(got, want, atol=2e-5)


# Beside: forks of a trunk.


@pytest.fixture(name='forks', scope='module')
def fixture_forks():
  M, T, R, S = 3, 4, 3, 512
  own = normal(B, M, T, N, H), normal(B, M, T, K, H), normal(B, M, T, K, H)
  trunks = normal(R, K, H, S), normal(R, K, S, H)
  seen = [[0, 300, 257], [512, 7, 0]]
  return (*own, *trunks, jnp.asarray([2, 0], jnp.int32), jnp.asarray(seen))


def want_beside(q, k, v, keys, values, rows, seen):
  T, S = q.shape[2], keys.shape[3]
  out = np.zeros(q.shape)
  for b, m in np.ndindex(*seen.shape):
    trunk = keys[rows[b]].transpose(2, 0, 1), values[rows[b]].swapaxes(0, 1)
    own = k[b, m], v[b, m]
    both = [jnp.concatenate(x) for x in zip(trunk, own, strict=True)]
    mask = np.arange(S)[None] < np.full((T, 1), seen[b, m])
    mask = np.concatenate([mask, np.tri(T, dtype=bool)], axis=1)
    out[b, m] = dense(q[b, m], *both, mask)
  return out


@pytest.mark.parametrize('name', ['xla', 'pallas', 'cudnn'])
def test_beside(forks, name):
  if name == 'cudnn':  # Its mask at least can be tried without a GPU.
    attend = functools.partial(kernels_cudnn.beside, implementation='xla')
  else:
    attend = functools.partial(kernels.beside, kernels.Backend(name))
  close(jax.jit(attend)(*forks), want_beside(*forks))


def test_a_fork_does_not_depend_on_its_neighbours(forks, monkeypatch):
  monkeypatch.setattr(kernels_cache, '_SLOTS', {True: 128, False: 128})
  attend = jax.jit(functools.partial(kernels.beside, PALLAS))
  *args, seen = forks
  got = attend(*args, seen)
  other = attend(*args, seen.at[0, 1].set(11).at[1, 0].set(512))
  np.testing.assert_array_equal(got[0, [0, 2]], other[0, [0, 2]])
  np.testing.assert_array_equal(got[1], other[1])


def test_unseen_blocks_are_not_read(forks, monkeypatch):
  monkeypatch.setattr(kernels_cache, '_SLOTS', {True: 128, False: 128})
  attend = jax.jit(functools.partial(kernels.beside, PALLAS))
  *own, keys, values, rows, _ = forks
  seen = jnp.asarray([[0, 120, 64], [250, 7, 0]])
  unseen = np.arange(512) >= [[[256]], [[512]], [[128]]]  # Of trunks 0, 1, 2.
  keys = jnp.where(unseen[:, None], jnp.float32(np.nan), keys)
  values = jnp.where(
      unseen[:, None].swapaxes(2, 3), jnp.float32(np.nan), values
  )
  got = attend(*own, keys, values, rows, seen)
  np.testing.assert_array_equal(got, attend(*own, *forks[3:5], rows, seen))


# On a mesh.


def test_each_device_attends_with_its_rows_and_heads():
  mesh = Mesh(np.array(jax.devices()).reshape(2, 2, 2), AXES)
  backend = kernels.Backend('pallas', mesh)
  q, k = normal(4, 40, N, H), normal(4, 40, K, H)
  segments = jnp.asarray(np.arange(160).reshape(4, 40) // 29, jnp.int32)
  attend = functools.partial(jax.jit, static_argnums=0)(kernels.causal)
  got = attend(backend, q, k, k, segments)
  assert got.sharding.spec == OWN
  close(got, attend(kernels.XLA, q, k, k, segments))

  q, k = normal(4, 1, 4, N, H), normal(4, 1, 4, K, H)
  trunks = normal(4, K, H, 128), normal(4, K, 128, H)
  seen = jnp.asarray([[5], [128], [0], [77]], jnp.int32)
  rows = jnp.zeros(4, jnp.int32)  # Each device holds one trunk.
  attend = functools.partial(jax.jit, static_argnums=0)(kernels.beside)
  got = attend(backend, q, k, k, *trunks, rows, seen)
  every = jnp.arange(4, dtype=jnp.int32)
  close(got, attend(kernels.XLA, q, k, k, *trunks, every, seen))

  for shape, why in (
      ((3, 8, K, H), '3 rows do not split 4 ways over data and fsdp'),
      ((4, 8, 3, H), '3 key-value heads do not split 2 ways over tensor'),
  ):
    with pytest.raises(errors.ConfigError, match=why):
      kernels.causal(backend, *(normal(*shape),) * 3, None)


@pytest.mark.parametrize('name', ['xla', 'pallas'])
def test_rows_whose_tokens_lie_on_several_devices(name):
  mesh = mesh_lib.make({'data': 2, 'tensor': 2, 'sequence': 2})
  backend = kernels.Backend(name, mesh)
  q, k, v = (
      normal(2, 256, 4, H),
      normal(2, 256, 2, H),
      normal(2, 256, 2, H, seed=1),
  )
  segments = jnp.asarray(np.arange(512).reshape(2, 256) // 90, jnp.int32)
  weight = normal(2, 256, 4, H, seed=2)

  @functools.partial(jax.jit, static_argnums=0)
  def run(backend, *qkv):
    attend = lambda *qkv: kernels.causal(backend, *qkv, segments)
    out, pull = jax.vjp(attend, *qkv)
    return out, pull(weight)

  got = run(backend, q, k, v)
  for x, y in zip(
      jax.tree.leaves(got),
      jax.tree.leaves(run(kernels.XLA, q, k, v)),
      strict=True,
  ):
    close(x, y, atol=1e-5)


# Who computes.


def fake_mesh(platform, kind):
  device = mock.Mock(platform=platform, device_kind=kind)
  one = dict.fromkeys(AXES, 1)
  return mock.Mock(spec=Mesh, devices=np.array([device]), shape=one, size=1)


@pytest.mark.parametrize(
    'platform, kind, name',
    [
        ('cpu', 'cpu', 'xla'),
        ('tpu', 'TPU v5 lite', 'pallas'),
        ('gpu', 'NVIDIA H100 80GB HBM3', 'cudnn'),
        ('gpu', 'AMD Instinct MI300X', 'xla'),
    ],
)
def test_auto(platform, kind, name):
  backend = kernels.Backend('auto', fake_mesh(platform, kind))
  assert backend.pick('causal', {}) == name
  assert backend.pick('causal', {name: 'it cannot'}) == 'xla'
  assert kernels.Backend().pick('causal', {}) == 'xla'


def test_a_named_backend_is_taken_or_refused():
  half = lambda *shape: normal(*shape).astype(jnp.bfloat16)
  qkv = (half(1, 8, 2, 16),) * 3
  cudnn = kernels.Backend('cudnn')
  with pytest.raises(errors.ConfigError, match='apart; take') as e:
    kernels.causal(cudnn, *qkv, jnp.zeros((1, 8), jnp.int32))
  assert "config.compute.attention is 'cudnn', for 'causal': " in str(e.value)
  with pytest.raises(errors.ConfigError, match='got float32; take'):
    kernels.causal(cudnn, *(normal(1, 8, 2, 16),) * 3, None)
  with pytest.raises(errors.ConfigError, match='128 and got 12; take'):
    kernels.causal(cudnn, *(half(1, 8, 2, 12),) * 3, None)
  own = (half(1, 1, 4, 2, 16),) * 3
  cache = half(1, 2, 16, 100), half(1, 2, 100, 16)
  places = jnp.zeros(1, jnp.int32), jnp.zeros((1, 1), jnp.int32)
  with pytest.raises(errors.ConfigError, match='100 slots is no multiple'):
    kernels.beside(PALLAS, *own, *cache, *places)
  with pytest.raises(errors.ConfigError, match="called 'flash'; these are: au"):
    kernels.Backend('flash')


GPU = 'gpu', 'NVIDIA H100 80GB HBM3'
TPU = 'tpu', 'TPU v5 lite'


@pytest.mark.parametrize(
    'name, device, dtype, H, why',
    [
        ('cudnn', ('cpu', 'cpu'), 'bfloat16', 64, 'needs NVIDIA .* are .cpu'),
        ('cudnn', TPU, 'bfloat16', 64, "needs NVIDIA GPUs .* 'TPU v5 lite'"),
        ('cudnn', ('gpu', 'AMD MI300X'), 'bfloat16', 64, "are 'AMD MI300X'"),
        ('cudnn', GPU, 'float32', 64, 'float16 and got float32'),
        ('cudnn', GPU, 'bfloat16', 12, '128 and got 12'),
        ('pallas', GPU, 'bfloat16', 64, "are for TPUs and .* 'NVIDIA H100"),
    ],
)
def test_a_named_backend_is_held_against_the_devices(
    name, device, dtype, H, why
):
  backend = kernels.Backend(name, fake_mesh(*device))
  message = rf"config\.compute\.attention is '{name}': .*{why}.*; take 'auto' o"
  with pytest.raises(errors.ConfigError, match=message):
    backend.check(dtype, H)


@pytest.mark.parametrize(
    'name, device',
    [
        ('cudnn', GPU),
        ('pallas', TPU),
        ('pallas', ('cpu', 'cpu')),  # Interpreted, for tests.
        *((n, d) for n in ('auto', 'xla') for d in (GPU, TPU, ('cpu', 'cpu'))),
    ],
)
def test_it_is_taken_where_it_runs(name, device):
  kernels.Backend(name, fake_mesh(*device)).check('bfloat16', 64)


def test_packed_rows_never_reach_cudnn():
  backend = kernels.Backend('auto', fake_mesh('gpu', 'NVIDIA H100 80GB HBM3'))
  qkv = (normal(1, 8, 2, 16).astype(jnp.bfloat16),) * 3
  segments = jnp.asarray([[0, 0, 0, 1, 1, 1, 1, 1]], jnp.int32)
  got = kernels.causal(backend, *qkv, segments)
  np.testing.assert_array_equal(got, flash.causal(*qkv, segments))


# What cannot run here is compiled, or at least lowered.


@pytest.fixture(name='tpus', scope='module')
def fixture_tpus():
  pytest.importorskip('libtpu', reason='compiles for a TPU with libtpu')
  # It is not to look for a TPU's neighbours, nor to mind another process.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  topology = topologies.get_topology_desc(
      platform='tpu', topology_name='v5e:2x2'
  )
  return Mesh(np.array(topology.devices).reshape(1, 2, 2), AXES)


def compiled_for(mesh, fn, *args):
  """Compiles without data: an argument is (shape, dtype, its split)."""
  place = lambda shape, dtype, spec: jax.ShapeDtypeStruct(
      shape, dtype, sharding=NamedSharding(mesh, spec)
  )
  lowered = jax.jit(fn).lower(*(place(*arg) for arg in args))
  return lowered.compile()


def check_program(compiled, num_kernels):
  text = compiled.as_text()
  assert text.count('custom_call_target="tpu_custom_call"') == num_kernels
  moves = re.findall(r'all-(?:gather|reduce|to-all)|collective-permute', text)
  assert not moves


@pytest.mark.parametrize('dtype, width', [('bfloat16', 128), ('float32', 64)])
def test_splash_compiles_for_tpu(tpus, dtype, width):
  backend = kernels.Backend('auto', tpus)

  def loss(q, k, v, segments):
    out = kernels.causal(backend, q, k, v, segments)
    return jnp.sum(out.astype(jnp.float32))

  q, k = (((4, 256, n, width), dtype, OWN) for n in (14, 2))
  segments = (4, 256), jnp.int32, ROWS
  grad = jax.grad(loss, (0, 1, 2))
  compiled = compiled_for(tpus, grad, q, k, k, segments)
  check_program(compiled, num_kernels=3)  # Forward, and two backward.


@pytest.mark.parametrize('dtype, width', [('bfloat16', 128), ('float32', 64)])
def test_cache_kernel_compiles_for_tpu(tpus, dtype, width):
  backend = kernels.Backend('auto', tpus)
  caches = ((4, 2, width, 2048), dtype, CACHE), (
      (4, 2, 2048, width),
      dtype,
      CACHE,
  )
  a_cache = 2 * 2048 * width * jnp.dtype(dtype).itemsize
  q, k = (((4, 2, 12, n, width), dtype, FORKS) for n in (14, 2))
  numbers = ((4,), jnp.int32, ROWS), ((4, 2), jnp.int32, ROWS)
  beside = functools.partial(kernels.beside, backend)
  compiled = compiled_for(tpus, beside, q, k, k, *caches, *numbers)
  check_program(compiled, num_kernels=1)
  assert compiled.memory_analysis().temp_size_in_bytes < a_cache


def test_cudnn_is_called(monkeypatch):
  module = fused_attention_stablehlo
  monkeypatch.setattr(module, 'check_cudnn_version', lambda: 91900)
  mesh = Mesh(np.array(jax.devices()[:4]).reshape(1, 2, 2), AXES)
  backend = kernels.Backend('cudnn', mesh)
  like = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
  ints = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.int32)

  def calls(fn, *args):
    traced = jax.jit(fn).trace(*args)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
    return re.findall(r'@(__cudnn\S+?)\(', text)

  def loss(q, k, v):
    out = kernels.causal(backend, q, k, v, None)
    return jnp.sum(out.astype(jnp.float32))

  q, k = (like(4, 256, n, 64) for n in (8, 4))
  assert calls(jax.grad(loss, (0, 1, 2)), q, k, k) == [
      '__cudnn$fmhaSoftmax',
      '__cudnn$fmhaSoftmaxBackward',
  ]
  q, k = (like(4, 3, 8, n, 64) for n in (8, 4))
  caches = like(4, 4, 64, 512), like(4, 4, 512, 64)
  beside = functools.partial(kernels.beside, backend)
  args = q, k, k, *caches, ints(4), ints(4, 3)
  assert calls(beside, *args) == ['__cudnn$fmhaScaleBiasSoftmax']


@pytest.mark.gpu
def test_on_the_accelerator():
  script = pathlib.Path(__file__).with_name('kernels_on_accelerator.py')
  root = str(script.parents[2])
  env = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  subprocess.run(
      [sys.executable, script], check=True, env={**env, 'PYTHONPATH': root}
  )
