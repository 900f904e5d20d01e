"""Rotary position embedding (RoPE) and its stretchings.

Source: Su et al. 2021, https://arxiv.org/abs/2104.09864, section 3.4.2, in the
half-split layout of the Llama and Qwen checkpoints: channel i turns together
with channel i + H/2, not with its neighbour.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from palign_jax.models import config as config_lib


def frequencies(
    head_dim: int, theta: float, scaling: config_lib.RopeScaling | None
) -> tuple[np.ndarray, float]:
  """Returns radians per token of each pair of channels, and a magnitude.

  Args:
    head_dim: H.
    theta: Base of the wavelengths.  It has no default because checkpoints
      differ (1e4, 5e5, 1e6, 5e6).
    scaling: How the wavelengths are stretched for long contexts.

  Returns:
    float64[H / 2], and the factor on cos and sin (1 except for YaRN).

  Raises:
    ValueError: If H is odd.
  """
  if head_dim % 2:
    raise ValueError(f'RoPE turns channels in pairs; H={head_dim} is odd.')
  freq = float(theta) ** -(np.arange(0, head_dim, 2) / head_dim)
  match scaling:
    case None:
      return freq, 1.0
    case config_lib.LinearScaling(factor):
      return freq / factor, 1.0
    case config_lib.Llama3Scaling():
      return _llama3(freq, scaling), 1.0
    case config_lib.YarnScaling():
      return _yarn(freq, theta, scaling), scaling.attention_factor
  raise ValueError(f'{scaling!r} is no RopeScaling.')


def _llama3(freq: np.ndarray, s: config_lib.Llama3Scaling) -> np.ndarray:
  turns = s.original_max_positions * freq / (2 * math.pi)
  keep = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
  keep = np.clip(keep, 0, 1)
  return keep * freq + (1 - keep) * freq / s.factor


def _yarn(
    freq: np.ndarray, theta: float, s: config_lib.YarnScaling
) -> np.ndarray:
  def channel(turns: float) -> float:
    """Returns the (fractional) pair that turns so often in the old context."""
    wavelength = s.original_max_positions / (turns * 2 * math.pi)
    return len(freq) * math.log(wavelength) / math.log(theta)

  low = max(math.floor(channel(s.beta_fast)), 0)
  high = min(math.ceil(channel(s.beta_slow)), 2 * len(freq) - 1)
  stretch = (np.arange(len(freq)) - low) / (high - low or 1e-3)
  stretch = np.clip(stretch, 0, 1)
  return stretch * freq / s.factor + (1 - stretch) * freq


def angles(
    positions: Int[Array, 'B T'],
    head_dim: int,
    theta: float,
    scaling: config_lib.RopeScaling | None,
) -> tuple[Float[Array, 'B T h'], Float[Array, 'B T h']]:
  """Returns cos and sin of every position and pair of channels.

  They are float32 whatever the model computes in: bfloat16 counts exactly only
  up to 256, and positions here reach 32768.

  Args:
    positions: Place of each token in its own sequence, in tokens from 0.
      Padding may hold any value.
    head_dim: H; h is H / 2.
    theta: Base of the wavelengths.
    scaling: How they are stretched.
  """
  freq_h, magnitude = frequencies(head_dim, theta, scaling)
  freq_h = jnp.asarray(freq_h, jnp.float32)
  angle_BTh = positions[..., None].astype(jnp.float32) * freq_h[None, None]
  magnitude = jnp.float32(magnitude)
  return jnp.cos(angle_BTh) * magnitude, jnp.sin(angle_BTh) * magnitude


def rotate(
    x: Float[Array, 'B T N H'],
    cos: Float[Array, 'B T h'],
    sin: Float[Array, 'B T h'],
) -> Float[Array, 'B T N H']:
  """Turns each query or key by its position's angles, in float32."""
  a_BTNh, b_BTNh = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos_BT1h, sin_BT1h = cos[:, :, None], sin[:, :, None]
  y_BTNH = jnp.concatenate(
      [
          a_BTNh * cos_BT1h - b_BTNh * sin_BT1h,
          b_BTNh * cos_BT1h + a_BTNh * sin_BT1h,
      ],
      axis=-1,
  )
  return y_BTNH.astype(x.dtype)
