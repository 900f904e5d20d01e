"""From logits to a token: penalty, temperature, top-k, top-p, in that order.

Another order is another distribution (filters before the temperature are a
bug that has moved published scores), so a test holds it against float64.

A token is the winner of a race: the greatest p / e, where e is exponential
noise of its own.  Top-k sorts a window of k.  Top-p alone sorts nothing: it
lets all tokens race, and only asks whether the winner is within; if not, all
that rank behind the winner are out too, and the others race on, with the same
noise.  So the token is the one that the sorted filter would give, after one or
two sums over V in most cases.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from palign_jax.core import errors
from palign_jax.sampling import noise


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How a token is drawn from logits."""

  temperature: float  # 0 is greedy; top_k and top_p are then not read.
  top_p: float  # 1 keeps all.
  top_k: int  # 0 keeps all.
  repetition_penalty: float  # 1 changes nothing.

  def __post_init__(self):
    for name, good, bounds in (
        ('temperature', self.temperature >= 0, 'at least 0 (greedy)'),
        ('top_p', 0 < self.top_p <= 1, 'above 0 and at most 1 (all)'),
        ('top_k', self.top_k >= 0, 'at least 0 (all)'),
        ('repetition_penalty', self.repetition_penalty > 0, 'above 0'),
    ):
      if not good:
        raise errors.ConfigError(
            f'sampling.{name} is {getattr(self, name)}; it must be {bounds}.'
        )


def penalize(
    logits: Float[Array, 'B V'], seen: Bool[Array, 'B V'], penalty: float
) -> Float[Array, 'B V']:
  """Makes seen tokens less likely (Keskar et al. 2019, arXiv 1909.05858).

  Args:
    logits: Of the next token.
    seen: Tokens of the prompt and of the output so far, as transformers and
      vLLM count them.
    penalty: Divides positive logits and multiplies negative ones.
  """
  factor = jnp.float32(penalty)
  lower = jnp.where(logits > 0, logits / factor, logits * factor)
  return jnp.where(seen, lower, logits)


def adjust(
    logits: Float[Array, 'B V'],
    seen: Bool[Array, 'B V'] | None,
    sampling: SamplingConfig,
    vocab_limit: int,
) -> Float[Array, 'B V']:
  """Returns the logits after penalty and temperature, before the filters.

  Args:
    logits: float32, of the next token.
    seen: Tokens of the prompt and of the output so far; None if the penalty
      is 1.
    sampling: What to apply.
    vocab_limit: Ids from here on are padding of the vocabulary: -inf.
  """
  ids = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
  x = jnp.where(ids < vocab_limit, logits, -jnp.inf)
  if sampling.repetition_penalty != 1:
    x = penalize(x, seen, sampling.repetition_penalty)
  if sampling.temperature == 0:
    return x
  return x / jnp.float32(sampling.temperature)


def _first(x: Float[Array, 'B V']) -> Int[Array, ' B']:
  """Returns the first place of the maximum; on a CPU faster than argmax."""
  ids = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  best = x == jnp.max(x, axis=1, keepdims=True)
  last = jnp.int32(x.shape[1] - 1)
  return jnp.min(jnp.where(best, ids, last), axis=1)


def draw(
    logits: Float[Array, 'B V'],
    seen: Bool[Array, 'B V'] | None,
    keys: UInt32[Array, 'B 2'],
    steps: Int[Array, ' B'],
    sampling: SamplingConfig,
    vocab_limit: int,
) -> Int[Array, ' B']:
  """Returns the next token of each row, which depends on that row alone.

  Args:
    logits: float32.
    seen: See `adjust`.
    keys: Each row's key data, as from `core.keys.fold`.
    steps: How many tokens each row has drawn before.
    sampling: How to draw.
    vocab_limit: Ids from here on are never drawn.

  Returns:
    Tokens; -1 in a row that has a NaN or an infinite best.
  """
  x = adjust(logits, seen, sampling, vocab_limit)
  top = jnp.max(x, axis=1, keepdims=True)  # NaN if there is one.
  tokens = _tokens(x, top, keys, steps, sampling, vocab_limit)
  return jnp.where(jnp.isfinite(top[:, 0]), tokens, jnp.int32(-1))


def _tokens(
    x, top, keys, steps, sampling, vocab_limit: int
) -> Int[Array, ' B']:
  """Returns what is drawn of adjusted logits [B V] with maxima [B 1]."""
  if sampling.temperature == 0:
    return _first(x)
  if 0 < sampling.top_k < vocab_limit:
    return _from_window(x, keys, steps, sampling)
  p = jnp.exp(x - top)
  ids = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  race = p / noise.exponential(keys, steps, ids)
  if sampling.top_p == 1:
    return _first(race)
  return _within(x, p, race, sampling.top_p)


def _from_window(x, keys, steps, sampling) -> Int[Array, ' B']:
  """Draws from the top k, of which the first that hold top_p of their mass."""
  x, ids = jax.lax.top_k(x, sampling.top_k)  # Of equals, the lower id first.
  p = jnp.exp(x - x[:, :1])
  race = p / noise.exponential(keys, steps, ids)
  ahead = jnp.cumsum(p, axis=1) - p
  target = jnp.sum(p, axis=1, keepdims=True) * jnp.float32(sampling.top_p)
  first = jnp.arange(x.shape[1], dtype=jnp.int32)[None] == 0
  race = jnp.where((ahead < target) | first, race, jnp.float32(-1))
  return jnp.take_along_axis(ids, _first(race)[:, None], axis=1)[:, 0]


def _within(x, p, race, top_p: float) -> Int[Array, ' B']:
  """Returns the winner among the fewest tokens that hold `top_p` of the mass.

  A token is one of them if those that rank ahead of it hold less.  Of equals
  the lower id ranks first.

  Args:
    x: Logits [B V].
    p: Their weights, exp(x - max).
    race: What the winner has most of.
    top_p: Below 1.
  """
  ids = jnp.arange(x.shape[1], dtype=jnp.int32)[None]
  target = jnp.sum(p, axis=1) * jnp.float32(top_p)

  def ahead(token):
    own = jnp.take_along_axis(x, token[:, None], axis=1)
    return (x > own) | (x == own) & (ids < token[:, None])

  def check(token):
    """Returns whether each token is out."""
    return jnp.sum(jnp.where(ahead(token), p, 0), axis=1) >= target

  def again(state):
    token, out = state
    rest = _first(jnp.where(ahead(token), race, jnp.float32(-1)))
    token = jnp.where(out, rest, token)
    return token, check(token)

  token = _first(race)
  state = token, check(token)
  return jax.lax.while_loop(lambda state: jnp.any(state[1]), again, state)[0]
