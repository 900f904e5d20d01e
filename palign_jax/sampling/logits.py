"""From logits to a token: penalty, temperature, top-k, top-p, in that order.

Another order is another distribution (filters before the temperature are a
bug that has moved published scores), so a test holds it against float64.

Nothing is sorted.  "The first tokens in falling order whose weights reach a
target" is both top-k (every weight 1) and top-p (their probabilities), and its
lowest logit is found by bisection on the bits of a float: 32 sums over V,
exact for every V, where a sort of 1,024 logits already costs 20 times more.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

from palign_jax.core import errors


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


def _order(x: Float[Array, 'B V']) -> UInt32[Array, 'B V']:
  """Returns integers in the order of the floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  negative = bits >> 31 == 1
  return jnp.where(negative, ~bits, bits | jnp.uint32(1 << 31))


def _bisect(holds, num_rows: int, bits: int) -> UInt32[Array, ' B']:
  """Returns per row the largest number for which `holds`.

  Args:
    holds: numbers [B] -> bool [B], true up to some number and false above; 0
      is taken to be true.
    num_rows: B.
    bits: Numbers are below 2 ** bits.
  """

  def step(i, low):
    high = low | (jnp.uint32(1 << (bits - 1)) >> i.astype(jnp.uint32))
    return jnp.where(holds(high), high, low)

  return jax.lax.fori_loop(0, bits, step, jnp.zeros(num_rows, jnp.uint32))


def _leading(
    x: Float[Array, 'B V'],
    weights: Float[Array, 'B V'],
    targets: Float[Array, ' B'],
) -> Bool[Array, 'B V']:
  """Returns the fewest tokens, likeliest first, whose weights reach a target.

  Among equal logits the lower id comes first.  All tokens if the target is
  above the sum of all weights.
  """
  order = _order(x)
  total = lambda mask: jnp.sum(jnp.where(mask, weights, 0), axis=1)
  reached = lambda low: total(order >= low[:, None]) >= targets
  low = _bisect(reached, len(x), 32)[:, None]
  above, equal = order > low, order == low

  def some_equals():
    """Leaves out those of the equals that come after the target is reached."""
    ids = jnp.arange(x.shape[1], dtype=jnp.uint32)[None]
    short = lambda end: total(above | equal & (ids < end[:, None])) < targets
    last = _bisect(short, len(x), x.shape[1].bit_length())
    return above | equal & (ids <= last[:, None])

  alone = jnp.all(jnp.sum(equal, axis=1) <= 1)
  return jax.lax.cond(alone, lambda: above | equal, some_equals)


def process(
    logits: Float[Array, 'B V'],
    seen: Bool[Array, 'B V'] | None,
    sampling: SamplingConfig,
    vocab_limit: int,
) -> Float[Array, 'B V']:
  """Returns the logits to draw from: -inf where a token is out.

  Args:
    logits: float32, of the next token.
    seen: Tokens of the prompt and of the output so far; None if the penalty
      is 1.
    sampling: What to apply.
    vocab_limit: Ids from here on are padding of the vocabulary, never drawn.
  """
  ids = jnp.arange(logits.shape[1], dtype=jnp.int32)[None]
  x = jnp.where(ids < vocab_limit, logits, -jnp.inf)
  if sampling.repetition_penalty != 1:
    x = penalize(x, seen, sampling.repetition_penalty)
  if sampling.temperature == 0:
    return x
  x = x / jnp.float32(sampling.temperature)
  if 0 < sampling.top_k < vocab_limit:
    k = jnp.full(len(x), sampling.top_k, jnp.float32)
    x = jnp.where(_leading(x, jnp.ones_like(x), k), x, -jnp.inf)
  if sampling.top_p < 1:
    p = jnp.exp(x - jnp.max(x, axis=1, keepdims=True))
    mass = jnp.sum(p, axis=1) * jnp.float32(sampling.top_p)
    x = jnp.where(_leading(x, p, mass), x, -jnp.inf)
  return x


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
    seen: See `process`.
    keys: Each row's key data, as from `core.keys.fold`.
    steps: How many tokens each row has drawn before.
    sampling: How to draw.
    vocab_limit: Ids from here on are never drawn.
  """
  x = process(logits, seen, sampling, vocab_limit)
  if sampling.temperature > 0:

    def noise(key, step):
      key = jax.random.wrap_key_data(key, impl='threefry2x32')
      key = jax.random.fold_in(key, step)
      return jax.random.gumbel(key, x.shape[1:], jnp.float32)

    x = x + jax.vmap(noise)(keys, steps)
  return jnp.argmax(x, axis=1).astype(jnp.int32)
