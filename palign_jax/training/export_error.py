"""How far the weights that are exported are from those that were trained.

Merging and casting round; the difference is measured on logits.
"""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from palign_jax.judging import scorer
from palign_jax.models import config as config_lib, decoder, kernels
from palign_jax.parallel import mesh as mesh_lib
from palign_jax.training import examples as examples_lib

# Fewer than most steps have: where a step fits, so does this.
_NUM_TOKENS = 1024  # Of an example, at most.
_NUM_PLACES = 64  # In these.


def measure(
    joined: decoder.Params,
    merged: decoder.Params,
    config: config_lib.ModelConfig,
    examples: Sequence[examples_lib.Example],
    *,
    mesh: Mesh,
    lora_scale: float,
) -> dict[str, float]:
  """Returns how far two models' logits are apart, and how often they disagree.

  Both are computed in float32, one example at a time on each group of devices,
  at places spread over the examples' first tokens.

  Args:
    joined: Weights as trained, with adapters if there are any.
    merged: Weights as exported.
    config: The model.
    examples: On which.
    mesh: Where the weights lie; examples lie there as in training.
    lora_scale: alpha / rank of the adapters.
  """
  backend = kernels.Backend('xla', mesh)
  everywhere = mesh_lib.replicated(mesh)

  def logits(params, tokens, places):
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    x_BTD = decoder.hidden(
        params,
        config,
        tokens,
        jnp.broadcast_to(positions, tokens.shape),
        None,
        dtype=jnp.float32,
        lora_scale=lora_scale,
        backend=backend,
    )
    x_bTD = x_BTD[: len(places)]  # The other rows are padding.
    x_bpD = jnp.take_along_axis(x_bTD, places[..., None], axis=1)
    x_bpD = jax.lax.with_sharding_constraint(x_bpD, everywhere)
    return decoder.logits(params, config, x_bpD)

  @functools.partial(jax.jit, out_shardings=everywhere)
  def compare(joined, merged, tokens, places):
    one, two = (logits(params, tokens, places) for params in (joined, merged))
    changed = one.argmax(-1) != two.argmax(-1)
    return jnp.max(jnp.abs(one - two)), jnp.mean(changed, dtype=jnp.float32)

  worst, changed = 0.0, 0.0
  num_rows = mesh_lib.num_row_shards(mesh)
  for begin in range(0, len(examples), num_rows):
    few = examples[begin : begin + num_rows]
    rows = _beginnings(few, num_rows, mesh_lib.num_parts(mesh))
    error, share = compare(joined, merged, *rows)
    worst = max(worst, float(error))
    changed += float(share) * len(few)
  return {'max': worst, 'argmax_changed': changed / len(examples)}


def _beginnings(
    examples: Sequence[examples_lib.Example], num_rows: int, num_parts: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns tokens [B T] and, for each example, places in its own [b p].

  Args:
    examples: At most `num_rows`.
    num_rows: B.
    num_parts: T is a multiple of it.
  """
  lengths = [min(len(e.tokens), _NUM_TOKENS) for e in examples]
  width = -(-scorer.width(max(lengths)) // num_parts) * num_parts
  tokens_BT = np.zeros((num_rows, width), np.int32)
  places_bp = np.zeros((len(examples), _NUM_PLACES), np.int32)
  for i, (example, length) in enumerate(zip(examples, lengths, strict=True)):
    tokens_BT[i, :length] = example.tokens[:length]
    places_bp[i] = np.linspace(0, length - 1, _NUM_PLACES)
  return tokens_BT, places_bp
