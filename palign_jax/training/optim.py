"""Optimisers and learning-rate schedules, each a plain Optax transformation.

Source: AdamW, Loshchilov and Hutter 2019 (arXiv 1711.05101); Muon with updates
of AdamW's size, Liu et al. 2025 (arXiv 2502.16982).
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import optax
from optax import contrib

from palign_jax.core import errors

Schedule = Callable[[Int[Array, '']], Float[Array, '']]

# Axes that a stacked kernel [L ...] sums over and those it gives; Muon makes
# the matrix (all of the first) x (all of the second) orthogonal, per layer.
_AXES = {
    'q': ((1,), (2, 3)),
    'k': ((1,), (2, 3)),
    'v': ((1,), (2, 3)),
    'o': ((1, 2), (3,)),
    'gate': ((1,), (2,)),
    'up': ((1,), (2,)),
    'down': ((1,), (2,)),
}
_MATRICES = ('kernel', 'table', 'lora_a', 'lora_b')


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """How parameters move.

  Attributes:
    name: 'adamw', or 'muon': Muon on the layers' kernels, AdamW on the rest.
    peak_lr: Learning rate after warm-up.
    warmup_frac: Share of all steps during which it rises, linearly.
    decay: 'cosine', 'linear' or 'constant', from the peak to the last step.
    final_lr_frac: Share of the peak left at the last step.
    weight_decay: Times the learning rate; on matrices only.
    b1: Of Adam.
    b2: Of Adam.
    eps: Of Adam.
    clip_norm: Gradients of a larger global norm are scaled down to it.
    muon_beta: Momentum of Muon; not read by 'adamw'.
  """

  name: str
  peak_lr: float
  warmup_frac: float
  decay: str
  final_lr_frac: float
  weight_decay: float
  b1: float
  b2: float
  eps: float
  clip_norm: float
  muon_beta: float = (
      0.95  # Jordan 2024, https://kellerjordan.github.io/posts/muon
  )


def schedule(config: OptimConfig, num_steps: int) -> Schedule:
  """Returns the learning rate by number of finished steps.

  Raises:
    ConfigError: If `config.decay` is unknown.
  """
  floor = config.final_lr_frac
  shapes = {
      'cosine': lambda x: floor + (1 - floor) * (1 + jnp.cos(jnp.pi * x)) / 2,
      'linear': lambda x: 1 - (1 - floor) * x,
      'constant': lambda x: jnp.ones_like(x),
  }
  if config.decay not in shapes:
    raise errors.ConfigError(
        f'config.sft.optim.decay is {config.decay!r}; it can be'
        f' {", ".join(shapes)}.'
    )
  warmup = round(config.warmup_frac * num_steps)

  def rate(step):
    done = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum((done + 1) / max(warmup, 1), 1.0)
    fall = jnp.clip((done - warmup) / max(num_steps - warmup, 1), 0.0, 1.0)
    return config.peak_lr * rise * shapes[config.decay](fall)

  return rate


def make(config: OptimConfig, rate: Schedule) -> optax.GradientTransformation:
  """Returns the optimiser, without clipping (the step clips, as it logs norms).

  Raises:
    ConfigError: If `config.name` is unknown.
  """
  adam = optax.scale_by_adam(config.b1, config.b2, config.eps)
  if config.name == 'adamw':
    direction = adam
  elif config.name == 'muon':
    muon = optax.chain(
        contrib.scale_by_muon(
            beta=config.muon_beta, weight_dimension_numbers=_numbers
        ),
        optax.stateless(lambda updates, _: _as_large_as_adamw(updates)),
    )
    direction = optax.partition({'muon': muon, 'adam': adam}, _labels)
  else:
    raise errors.ConfigError(
        f'config.sft.optim.name is {config.name!r}; it can be adamw, muon.'
    )
  return optax.chain(
      direction,
      optax.add_decayed_weights(config.weight_decay, _is_matrix),
      optax.scale_by_learning_rate(rate),
  )


def _names(path: tuple[Any, ...]) -> list[str]:
  return jax.tree_util.keystr(path, simple=True, separator='/').split('/')


def _labels(params: Any) -> Any:
  def label(path, _):
    *parents, leaf = _names(path)
    inside = leaf == 'kernel' and parents and parents[-1] in _AXES
    return 'muon' if inside else 'adam'

  return jax.tree_util.tree_map_with_path(label, params)


def _numbers(params: Any) -> Any:
  def numbers(path, _):
    return contrib.MuonDimensionNumbers(*_AXES[_names(path)[-2]])

  return jax.tree_util.tree_map_with_path(numbers, params)


def _as_large_as_adamw(updates: Any) -> Any:
  """Scales orthogonal matrices to an RMS of 0.2, so that one rate serves all.

  Source: Liu et al. 2025 (arXiv 2502.16982), section 2.2.
  """

  def scale(path, x):
    into, out = _AXES[_names(path)[-2]]
    sizes = [math.prod(x.shape[a] for a in axes) for axes in (into, out)]
    return x * jnp.float32(0.2 * math.sqrt(max(sizes)))

  return jax.tree_util.tree_map_with_path(scale, updates)


def _is_matrix(params: Any) -> Any:
  return jax.tree_util.tree_map_with_path(
      lambda path, _: _names(path)[-1] in _MATRICES, params
  )
