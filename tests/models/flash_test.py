"""Attention in blocks is plain attention, and so is its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from palign_jax.models import attention, flash


def qkv(T, N, K, H=8, B=2):
  rng = np.random.default_rng(T)
  shapes = ((B, T, N, H), (B, T, K, H), (B, T, K, H))
  return [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]


@pytest.mark.parametrize('N, K', [(4, 4), (6, 2), (3, 1)])
def test_torch(N, K):
  torch.set_num_threads(1)
  q, k, v = qkv(33, N, K)
  turn = lambda x: torch.tensor(np.asarray(x)).transpose(1, 2)
  want = torch.nn.functional.scaled_dot_product_attention(
      turn(q), turn(k), turn(v), is_causal=True, enable_gqa=True
  )
  got = flash.causal(q, k, v, None)
  np.testing.assert_allclose(got, want.transpose(1, 2), rtol=0, atol=1e-5)


@jax.jit
def plain(q, k, v, segments):
  T = q.shape[1]
  mask = jnp.tril(jnp.ones((1, T, T), bool))
  if segments is not None:
    mask = mask & (segments[:, :, None] == segments[:, None])
  return attention.masked(q, k, v, mask)


# A part of a block; two, the last one short; more than key lengths compiled.
@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('T', [41, 150, 1200])
def test_blocks(T, packed):
  q, k, v = qkv(T, 6, 2)
  segments = None
  if packed:
    segments = jnp.asarray(np.arange(2 * T).reshape(2, T) // 29 % 7, jnp.int32)
  weights = jnp.asarray(np.random.default_rng(0).normal(size=q.shape), q.dtype)

  def run(attend):
    def total(q, k, v):
      out = attend(q, k, v, segments)
      return jnp.sum(out * weights), out

    return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

  (got, out), (want, wanted) = run(flash.causal), run(plain)
  np.testing.assert_allclose(out, wanted, rtol=0, atol=1e-5)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize('packed', [False, True])
def test_the_gradient_in_bfloat16(packed):
  q, k, v = qkv(300, 4, 2)
  segments = jnp.asarray(np.arange(600).reshape(2, 300) // 77, jnp.int32)
  segments = segments if packed else None
  total = lambda attend: lambda *qkv: jnp.sum(
      attend(*qkv, segments).astype(jnp.float32) ** 2
  )
  grad = lambda attend: jax.jit(jax.grad(total(attend), argnums=(0, 1, 2)))
  halves = [x.astype(jnp.bfloat16) for x in (q, k, v)]
  for a, b in zip(
      grad(flash.causal)(*halves), grad(plain)(q, k, v), strict=True
  ):
    assert a.dtype == jnp.bfloat16
    apart = np.abs(np.asarray(a, np.float32) - b)
    assert apart.max() < 0.02 * np.abs(b).max()


def test_no_scores_are_kept():
  q, k, v = qkv(1024, 4, 2)
  _, pull = jax.eval_shape(
      lambda *qkv: jax.vjp(lambda *qkv: flash.causal(*qkv, None), *qkv),
      q,
      k,
      v,
  )
  kept = sum(x.size for x in jax.tree.leaves(pull))
  # Queries, keys, values, what comes out, and a number for each query.
  want = 2 * q.size + k.size + v.size + q.size // q.shape[-1]
  assert 0 <= kept - want < 9


def test_later_tokens_are_not_seen():
  q, k, v = qkv(130, 2, 1)
  causal = jax.jit(flash.causal)
  late = jnp.arange(130)[None, :, None, None] >= 77
  spoil = lambda x: jnp.where(late, jnp.float32(1e6), x)
  got = causal(q, spoil(k), spoil(v), None)
  np.testing.assert_array_equal(got[:, :77], causal(q, k, v, None)[:, :77])


def test_segments_do_not_see_each_other():
  q, k, v = qkv(130, 2, 1)
  segments = jnp.asarray(np.repeat([[1, 2]] * 2, [77, 53], axis=1), jnp.int32)
  causal = jax.jit(flash.causal)
  early = jnp.arange(130)[None, :, None, None] < 77
  spoil = lambda x: jnp.where(early, jnp.float32(1e6), x)
  got = causal(q, spoil(k), spoil(v), segments)
  want = causal(q, k, v, segments)
  np.testing.assert_array_equal(got[:, 77:], want[:, 77:])


def test_padding_stays_finite():
  q, k, v = qkv(70, 2, 1)
  segments = jnp.zeros((2, 70), jnp.int32)
  assert np.isfinite(flash.causal(q, k, v, segments)).all()
  nothing = jnp.zeros((1, 70, 70), bool)
  mean = np.asarray(v).mean(axis=1)[:, None].repeat(2, axis=2)
  got = attention.masked(q, k, v, nothing)
  np.testing.assert_allclose(got, mean.repeat(70, axis=1), atol=1e-6)


def test_softmax_of_bfloat16_is_float32():
  # 300 equal scores: a bfloat16 sum of their weights would stop at 256.
  q = jnp.zeros((1, 1, 1, 2), jnp.bfloat16)
  k = jnp.zeros((1, 300, 1, 2), jnp.bfloat16)
  v = jnp.ones((1, 300, 1, 2), jnp.bfloat16)
  got = attention.masked(q, k, v, jnp.ones((1, 1, 300), bool))
  np.testing.assert_allclose(np.asarray(got, np.float32), 1.0, rtol=0.01)
  assert got.dtype == jnp.bfloat16
