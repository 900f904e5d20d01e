"""One table between Hugging Face tensors and ours, read in both directions.

A row is (Hugging Face name, our path, pattern).  The pattern tells how the
axes are grouped and ordered on either side; import reads it from left to
right and export from right to left, so they cannot drift apart.  Letters are
those of core/shapes.py.  `{}` is a layer; ours are stacked on a leading L,
which the patterns leave out.
"""

from collections.abc import Callable, Collection, Mapping
import dataclasses
import math

import numpy as np

from palign_jax.models import config as config_lib

Sizes = Mapping[str, int]
Slices = tuple[slice, ...]

# fmt: off
_EMBED = (
    ('model.embed_tokens.weight',  'embed/table',      'V D -> V D'),
)
_END = (
    ('model.norm.weight',          'final_norm/scale', 'D -> D'),
)
_HEAD = (
    ('lm_head.weight',             'lm_head/kernel',   'V D -> D V'),
)
_LAYER = (
    ('input_layernorm.weight',          'attn_norm/scale', 'D -> D'),
    ('self_attn.q_proj.weight',         'q/kernel',    '(N H) D -> D N H'),
    ('self_attn.k_proj.weight',         'k/kernel',    '(K H) D -> D K H'),
    ('self_attn.v_proj.weight',         'v/kernel',    '(K H) D -> D K H'),
    ('self_attn.o_proj.weight',         'o/kernel',    'D (N H) -> N H D'),
    ('post_attention_layernorm.weight', 'mlp_norm/scale', 'D -> D'),
    ('mlp.gate_proj.weight',            'gate/kernel', 'F D -> D F'),
    ('mlp.up_proj.weight',              'up/kernel',   'F D -> D F'),
    ('mlp.down_proj.weight',            'down/kernel', 'D F -> F D'),
)
_QKV_BIAS = (
    ('self_attn.q_proj.bias',           'q/bias', '(N H) -> N H'),
    ('self_attn.k_proj.bias',           'k/bias', '(K H) -> K H'),
    ('self_attn.v_proj.bias',           'v/bias', '(K H) -> K H'),
)
_QK_NORM = (
    ('self_attn.q_norm.weight',         'q_norm/scale', 'H -> H'),
    ('self_attn.k_norm.weight',         'k_norm/scale', 'H -> H'),
)
_ADAPTER = (
    ('self_attn.q_proj.lora_A.weight', 'q/lora_a',    'R D -> D R'),
    ('self_attn.q_proj.lora_B.weight', 'q/lora_b',    '(N H) R -> R N H'),
    ('self_attn.k_proj.lora_A.weight', 'k/lora_a',    'R D -> D R'),
    ('self_attn.k_proj.lora_B.weight', 'k/lora_b',    '(K H) R -> R K H'),
    ('self_attn.v_proj.lora_A.weight', 'v/lora_a',    'R D -> D R'),
    ('self_attn.v_proj.lora_B.weight', 'v/lora_b',    '(K H) R -> R K H'),
    ('self_attn.o_proj.lora_A.weight', 'o/lora_a',    'R (N H) -> N H R'),
    ('self_attn.o_proj.lora_B.weight', 'o/lora_b',    'D R -> R D'),
    ('mlp.gate_proj.lora_A.weight',    'gate/lora_a', 'R D -> D R'),
    ('mlp.gate_proj.lora_B.weight',    'gate/lora_b', 'F R -> R F'),
    ('mlp.up_proj.lora_A.weight',      'up/lora_a',   'R D -> D R'),
    ('mlp.up_proj.lora_B.weight',      'up/lora_b',   'F R -> R F'),
    ('mlp.down_proj.lora_A.weight',    'down/lora_a', 'R F -> F R'),
    ('mlp.down_proj.lora_B.weight',    'down/lora_b', 'D R -> R D'),
)
# fmt: on
# Buffers that older checkpoints carry; the config says the same.
IGNORED = (
    'model.rotary_emb.inv_freq',
    'model.layers.{}.self_attn.rotary_emb.inv_freq',
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One tensor, or one per layer, on both sides."""

  hf: str
  path: tuple[str, ...]
  pattern: str

  @property
  def stacked(self) -> bool:
    """Whether it is a tensor per layer there, and one with an L here."""
    return self.path[0] == 'layers'

  @property
  def _sides(self) -> tuple[list[list[str]], list[str]]:
    left, right = self.pattern.split(' -> ')
    groups = left.replace('(N H)', 'NH').replace('(K H)', 'KH').split()
    return [list(group) for group in groups], right.split()

  def hf_shape(self, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of the Hugging Face tensor."""
    groups, _ = self._sides
    return tuple(math.prod(sizes[a] for a in group) for group in groups)

  def shape(self, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of ours, for one layer."""
    return tuple(sizes[a] for a in self._sides[1])

  def read(
      self, get: Callable[[Slices], np.ndarray], sizes: Sizes, index: Slices
  ) -> np.ndarray:
    """Returns a part of our array, and asks for no more than it needs.

    Args:
      get: Returns a part of the Hugging Face tensor.
      sizes: Of the axes.
      index: The part wanted, for one layer.
    """
    groups, ours = self._sides
    want = {
        a: s.indices(sizes[a])[:2] for a, s in zip(ours, index, strict=True)
    }
    parts, shape, order = [], [], []
    for first, *rest in groups:
      inner = math.prod(sizes[a] for a in rest)
      begin, end = want[first]
      parts.append(slice(begin * inner, end * inner))
      shape += [end - begin, *(sizes[a] for a in rest)]
      order += [first, *rest]
    x = (
        get(tuple(parts))
        .reshape(shape)
        .transpose([order.index(a) for a in ours])
    )
    firsts = {group[0] for group in groups}
    return x[
        tuple(slice(None) if a in firsts else slice(*want[a]) for a in ours)
    ]

  def to_hf(self, x: np.ndarray, sizes: Sizes) -> np.ndarray:
    """Returns the Hugging Face tensor of our array, for one layer."""
    groups, ours = self._sides
    order = [ours.index(a) for group in groups for a in group]
    return x.transpose(order).reshape(self.hf_shape(sizes))


def _rows(table, hf_prefix: str = '', path: tuple[str, ...] = ()):
  return tuple(
      Row(hf_prefix + hf, (*path, *ours.split('/')), pattern)
      for hf, ours, pattern in table
  )


def rows(config: config_lib.ModelConfig) -> tuple[Row, ...]:
  """Returns the rows of a model, those of all its layers in one block."""
  layer = _LAYER
  layer += _QKV_BIAS if config.qkv_bias else ()
  layer += _QK_NORM if config.qk_norm else ()
  return (
      *_rows(_EMBED),
      *_rows(layer, 'model.layers.{}.', ('layers',)),
      *_rows(_END + (() if config.tied else _HEAD)),
  )


def adapter_rows(targets: Collection[str] | None = None) -> tuple[Row, ...]:
  """Returns the rows of the adapters, by the names that PEFT gives them.

  Args:
    targets: Our names of the projections that have one; None for all.
  """
  rows = _rows(_ADAPTER, 'base_model.model.model.layers.{}.', ('layers',))
  return tuple(row for row in rows if not targets or row.path[1] in targets)


def sizes(config: config_lib.ModelConfig, rank: int = 0) -> Sizes:
  """Returns the size of each letter."""
  return {
      'V': config.vocab_size,
      'L': config.num_layers,
      'D': config.embed_dim,
      'N': config.num_heads,
      'K': config.num_kv_heads,
      'H': config.head_dim,
      'F': config.mlp_dim,
      'R': rank,
  }


def names(table: tuple[Row, ...], num_layers: int) -> dict[str, Row]:
  """Returns the row of each Hugging Face name."""
  found = {}
  for row in table:
    for i in range(num_layers if row.stacked else 1):
      found[row.hf.format(i)] = row
  return found
