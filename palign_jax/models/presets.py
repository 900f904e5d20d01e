"""Models by their name on the Hub, for whoever has not downloaded them.

The numbers are those of each repository's config.json; a test reads them back
through the importer.  Nothing that computes takes a model from here: a run
reads the folder.
"""

from collections.abc import Mapping
import dataclasses

from palign_jax.models import config as config_lib


@dataclasses.dataclass(frozen=True)
class Preset:
  """A model, and how long a text it is meant for."""

  model: config_lib.ModelConfig
  max_positions: int  # In tokens.


def _qwen2(
    vocab_size: int, sizes: tuple[int, ...], eps: float, theta: float
) -> config_lib.ModelConfig:
  """Returns a Qwen2 of L, D, N, K and F."""
  return _model(
      vocab_size, sizes, eps, theta, None, qkv_bias=True, qk_norm=False
  )


def _qwen3(sizes: tuple[int, ...]) -> config_lib.ModelConfig:
  """Returns a Qwen3 of L, D, N, K and F."""
  return _model(151_936, sizes, 1e-6, 1e6, None, qkv_bias=False, qk_norm=True)


def _model(
    vocab_size, sizes, eps, theta, scaling, *, qkv_bias, qk_norm, tied=False
) -> config_lib.ModelConfig:
  num_layers, embed_dim, num_heads, num_kv_heads, mlp_dim = sizes
  return config_lib.ModelConfig(
      vocab_size=vocab_size,
      num_layers=num_layers,
      embed_dim=embed_dim,
      num_heads=num_heads,
      num_kv_heads=num_kv_heads,
      head_dim=128,
      mlp_dim=mlp_dim,
      norm_eps=eps,
      rope_theta=theta,
      rope_scaling=scaling,
      qkv_bias=qkv_bias,
      qk_norm=qk_norm,
      tied=tied,
  )


_7B = 28, 3584, 28, 4, 18_944
PRESETS: Mapping[str, Preset] = {
    'Qwen/Qwen2.5-7B-Instruct': Preset(_qwen2(152_064, _7B, 1e-6, 1e6), 32_768),
    'Qwen/Qwen3-8B': Preset(_qwen3((36, 4096, 32, 8, 12_288)), 40_960),
    'Qwen/Qwen3-14B': Preset(_qwen3((40, 5120, 40, 8, 17_408)), 40_960),
    'meta-llama/Llama-3.2-3B-Instruct': Preset(
        _model(
            128_256,
            (28, 3072, 24, 8, 8192),
            1e-5,
            5e5,
            config_lib.Llama3Scaling(32.0, 1.0, 4.0, 8192),
            qkv_bias=False,
            qk_norm=False,
            tied=True,
        ),
        131_072,
    ),
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B': Preset(
        _qwen2(151_936, (28, 1536, 12, 2, 8960), 1e-6, 1e4), 131_072
    ),
    'deepseek-ai/DeepSeek-R1-Distill-Qwen-7B': Preset(
        _qwen2(152_064, _7B, 1e-6, 1e4), 131_072
    ),
    'Qwen/QwQ-32B': Preset(
        _qwen2(152_064, (64, 5120, 40, 8, 27_648), 1e-5, 1e6), 40_960
    ),
}


def find(name: str) -> Preset | None:
  """Returns the model of a Hub name, or of a path whose last part is one's."""
  last = name.rstrip('/').rpartition('/')[2]
  return next((p for n, p in PRESETS.items() if n.endswith('/' + last)), None)
