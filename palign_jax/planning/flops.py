"""Work and traffic of a model, by formula.

A compiler counts a scan's body once and does not see into kernels, so FLOPs are
counted here: two for each weight a token meets, and for attention two products
of H numbers for each pair of query and key.  `model` is what the mathematics
asks for, which MFU is measured by; `executed` has what is computed twice too.
"""

import dataclasses

from palign_jax.models import config as config_lib

_BF16 = 2  # Bytes.


@dataclasses.dataclass(frozen=True)
class Work:
  """Of one step, on all devices together."""

  model: float  # FLOPs.
  executed: float  # FLOPs.


@dataclasses.dataclass(frozen=True)
class Again:
  """What of the layers the backward pass computes again.

  Attributes:
    products: The products with weights.
    attention: Attention itself.
  """

  products: bool
  attention: bool


def layer_weights(c: config_lib.ModelConfig) -> int:
  """Returns the weights of a layer that are multiplied with."""
  heads = 2 * c.num_heads + 2 * c.num_kv_heads
  return c.embed_dim * (heads * c.head_dim + 3 * c.mlp_dim)


def head_weights(c: config_lib.ModelConfig) -> int:
  """Returns the weights that make logits."""
  return c.embed_dim * c.vocab_size


def reading(
    c: config_lib.ModelConfig, tokens: int, seen: float, logits: int
) -> Work:
  """Returns the work of reading tokens beside a cache, without gradients.

  Args:
    c: The model.
    tokens: How many, of all rows together.
    seen: Keys that each of them sees, on average.
    logits: How many of them need logits.
  """
  total = 2.0 * tokens * c.num_layers * layer_weights(c)
  total += 2.0 * logits * head_weights(c)
  total += tokens * c.num_layers * _pairs(c, seen)
  return Work(total, total)


def _pairs(c: config_lib.ModelConfig, seen: float) -> float:
  """Returns the FLOPs of one query's attention in one layer."""
  return 4.0 * c.num_heads * c.head_dim * seen


def training(
    c: config_lib.ModelConfig,
    *,
    tokens: int,
    length: int,
    adapters: int,
    again: Again,
    splash: bool = True,
) -> Work:
  """Returns the work of an optimiser step, without the update itself.

  Args:
    c: The model.
    tokens: Of all rows together, padding included.
    length: Of a row.  Packed rows need less attention than is counted here:
      the kernels compute all that lies under the diagonal.
    adapters: Their weights, all layers together; 0 if all weights are trained.
    again: What is computed twice.
    splash: Attention's backward pass is two kernels of seven products
      together, where four would do.
  """
  layers = 2.0 * tokens * c.num_layers * layer_weights(c)
  head = 2.0 * tokens * head_weights(c)
  beside = 2.0 * tokens * adapters
  attention = tokens * c.num_layers * _pairs(c, length / 2)
  back = 1 if adapters else 2  # Frozen weights have no gradient of their own.
  model = (1 + back) * (layers + head) + 3 * beside + 3 * attention
  more = again.products * (layers + beside) + again.attention * attention
  return Work(model, model + more + (1.5 * attention if splash else 0))


def weight_bytes(c: config_lib.ModelConfig, of_layers: int = _BF16) -> int:
  """Returns the bytes of all weights that a token meets.

  Args:
    c: The model.
    of_layers: Bytes of a weight of a layer; the head's are bfloat16.
  """
  layers = c.num_layers * layer_weights(c)
  return of_layers * layers + _BF16 * head_weights(c)


def kv_bytes(c: config_lib.ModelConfig) -> int:
  """Returns the bytes that a token leaves in a cache, in bfloat16."""
  return 2 * _BF16 * c.num_layers * c.num_kv_heads * c.head_dim


def reading_traffic(
    c: config_lib.ModelConfig, tokens: int, cached: int
) -> float:
  """Returns the bytes that reading moves through memory, all devices together.

  Of a group of devices that holds the weights once (all of the mesh's tensor
  axis): the weights once, and what follows from tokens and cache.

  Args:
    c: The model.
    tokens: That are read.
    cached: Tokens of all rows whose keys and values are read.
  """
  return float(tokens * _stream(c) + cached * kv_bytes(c))


def _stream(c: config_lib.ModelConfig) -> int:
  """Returns the bytes that a token's operands and results are, in a pass."""
  heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
  layer = heads + 7 * c.embed_dim + 3 * c.mlp_dim
  return _BF16 * c.num_layers * layer


def training_traffic(
    c: config_lib.ModelConfig, tokens: int, again: Again
) -> float:
  """Returns the bytes of activations that a step moves, all devices together.

  Every product reads its operands and writes its result once: forward, twice
  in the backward pass, and where it is computed again.
  """
  return float(tokens * _stream(c) * (3 + again.products))
