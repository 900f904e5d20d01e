"""The numbers that make one decoder a Qwen2.5, a Qwen3 or a Llama.

Only what bears on the output stands here (a test changes each field and sees
the logits change); what a checkpoint says beyond it is kept by `checkpoints/`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class LinearScaling:
  """Position interpolation: every angle is divided by `factor`."""

  factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
  """Llama 3.1's rule: slow channels are interpolated, fast ones are kept.

  Wavelengths above original_max_positions / low_freq_factor are stretched by
  `factor`, those below original_max_positions / high_freq_factor are kept.
  """

  factor: float
  low_freq_factor: float
  high_freq_factor: float
  original_max_positions: int  # In tokens.


@dataclasses.dataclass(frozen=True)
class YarnScaling:
  """YaRN (Peng et al. 2023, arXiv 2309.00071) as Qwen2.5 uses it."""

  factor: float
  original_max_positions: int  # In tokens.
  beta_fast: float  # Channels turning more often than this are kept.
  beta_slow: float  # Channels turning less often than this are stretched.
  attention_factor: float  # Scales cos and sin, hence logits by its square.


RopeScaling = LinearScaling | Llama3Scaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A dense decoder with grouped-query attention and a gated SiLU MLP."""

  vocab_size: int  # V; may exceed the tokenizer's, the rest is padding.
  num_layers: int  # L
  embed_dim: int  # D
  num_heads: int  # N
  num_kv_heads: int  # K
  head_dim: int  # H; N * H need not equal D.
  mlp_dim: int  # F
  norm_eps: float
  rope_theta: float
  rope_scaling: RopeScaling | None
  qkv_bias: bool  # Qwen2 and Qwen2.5.
  qk_norm: bool  # Qwen3: RMSNorm over H on queries and keys.
  tied: bool  # The embedding table is also the head.
