"""What a layer keeps for the backward pass, and what is computed again.

none            keeps everything: fastest while it fits
dots            keeps what projections and attention give; norms, rotations and
                activations of the MLP are computed again, at little cost
save_attention  keeps what attention gives, with its log-sum-exp; projections
                are computed again
full            keeps the stream between layers only: for the longest rows

Per token and layer that is, in numbers kept beside the stream: all; D + 2 K H +
2 N H + N + 2 F; N H + N; and nothing.
"""

from collections.abc import Callable

import jax
from jax import ad_checkpoint

from palign_jax.core import errors

# The names by which values are known.
ATTENTION, PROJECTION = 'attention', 'projection'
_only = jax.checkpoint_policies.save_only_these_names
_POLICIES = {
    'dots': _only(PROJECTION, ATTENTION),
    'save_attention': _only(ATTENTION),
    'full': jax.checkpoint_policies.nothing_saveable,
}
NAMES = ('none', *_POLICIES)


def wrap(step: Callable, name: str, *, in_scan: bool) -> Callable:
  """Returns a layer that keeps what the policy says.

  Args:
    step: A layer.
    name: One of `NAMES`.
    in_scan: Whether it is the body of a scan.  Nothing need then keep XLA from
      merging the second computation with the first.

  Raises:
    ConfigError: If there is no policy of this name.
  """
  if name not in NAMES:
    raise errors.ConfigError(
        f'config.sft.remat is {name!r}; it can be {", ".join(NAMES)}.'
    )
  if name == 'none':
    return step
  return jax.checkpoint(step, policy=_POLICIES[name], prevent_cse=not in_scan)


def named(x: jax.Array, name: str) -> jax.Array:
  """Returns what attention or a projection gives, under its name."""
  return ad_checkpoint.checkpoint_name(x, name)
