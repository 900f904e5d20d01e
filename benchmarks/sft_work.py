"""What both sides of the fine-tuning benchmark train on, and what it costs."""

import contextlib
import dataclasses
import subprocess
import time

import numpy as np

from palign_jax.core import errors
from palign_jax.models import config as config_lib

LR, BETAS, EPS, CLIP = 1e-4, (0.9, 0.999), 1e-8, 1.0  # AdamW, no decay.
ALPHA = 16.0
# Dense bfloat16 FLOP/s from the vendors' data sheets.
_PEAKS = {'H100': 989e12, 'H200': 989e12, 'A100': 312e12, 'L4': 121e12}


@dataclasses.dataclass(frozen=True)
class Work:
  """What is to be trained.

  Attributes:
    folder: A checkpoint.
    adapter: Adapters in PEFT's format; None trains all weights.
    dtype: Of the computation, and of a frozen base.
    num_rows: Of a step.
    num_tokens: Of a row.
    num_steps: Whose losses are compared.
  """

  folder: str
  adapter: str | None
  dtype: str
  num_rows: int
  num_tokens: int
  num_steps: int

  def tokens(self, vocab_size: int) -> np.ndarray:
    """Returns the rows of every step [B T].

    They are of few ids, and the same in all steps: what is learnt shows soon.
    """
    rng = np.random.default_rng(0)
    shape = self.num_rows, self.num_tokens
    return rng.integers(0, min(vocab_size, 256), shape).astype(np.int32)


def make_adapter(folder: str, adapter: str, rank: int) -> None:
  """Writes adapters that change nothing yet."""
  import jax  # Not where PyTorch is measured.

  from palign_jax.checkpoints import hf_export, hf_import
  from palign_jax.models import lora

  config = hf_import.describe(folder, dtype='float32').config
  adapters = jax.jit(lambda key: lora.init(config, rank, key))(
      jax.random.key(1)
  )
  hf_export.save_adapter(
      adapter, adapters, config, alpha=ALPHA, base_name=folder
  )


def flops(
    config: config_lib.ModelConfig, work: Work, num_adapted: int
) -> float:
  """Returns the FLOPs of a step's products, recomputation not counted.

  Two per weight and token forward, two for the gradient of what goes in, two
  for that of the weight unless it is frozen; attention counts the pairs that
  causality leaves.

  Args:
    config: The model.
    work: What is trained.
    num_adapted: Parameters of the adapters.
  """
  c, T = config, work.num_tokens
  heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  layer = c.embed_dim * (heads + 3 * c.mlp_dim)
  weights = c.num_layers * layer + c.vocab_size * c.embed_dim
  per_token = (4 if work.adapter else 6) * weights + 6 * num_adapted
  pairs = T * (T + 1) / 2
  attention = 3 * 4 * pairs * c.num_heads * c.head_dim * c.num_layers
  return float(work.num_rows * (T * per_token + attention))


def peak() -> tuple[float, str]:
  """Returns the FLOP/s by which mfu is counted, and what they are.

  Raises:
    ConfigError: If there is a GPU whose data sheet is not known here.
  """
  with contextlib.suppress(OSError):
    ask = ['nvidia-smi', '--query-gpu=name', '--format=csv,noheader']
    done = subprocess.run(ask, capture_output=True, text=True)
    for name, value in _PEAKS.items():
      if done.returncode == 0 and name in done.stdout:
        return value, f'{name}, bfloat16, by its data sheet'
    if done.returncode == 0 and done.stdout.strip():
      raise errors.ConfigError(
          f'no peak is known of {done.stdout.splitlines()[0]}; give --peak.'
      )
  size, times = 3072, []
  x = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
  for _ in range(4):
    begin = time.perf_counter()
    x @ x
    times.append(time.perf_counter() - begin)
  return 2 * size**3 / min(times), 'the best of 4 float32 products here'
