"""A slice made of this machine's devices, a model of two layers, a config."""

import dataclasses
import json

import jax

from configs import qwen2_5_7b
from palign_jax.planning import chips, roofline, steps, topology

RAW = {
    'architectures': ['Qwen2ForCausalLM'],
    'vocab_size': 64,
    'hidden_size': 64,
    'intermediate_size': 128,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'rms_norm_eps': 1e-6,
    'rope_theta': 1e4,
    'max_position_embeddings': 2048,
}


def slice_of(num: int = 4, **changes) -> topology.Topology:
  """v5e chips whose devices are CPUs."""
  chip = dataclasses.replace(chips.CHIPS['v5e'], **changes)
  sizes = num // 2, 2
  name = f'v5e:{num // 2}x2'
  return topology.Topology(name, chip, sizes, tuple(jax.devices()[:num]))


def config(folder, **changes):
  """The config of a 7B student, with a small one in its place."""
  (folder / 'config.json').write_text(json.dumps(RAW))
  made = qwen2_5_7b.get_config()
  made.student.update(path=str(folder), dtype='float32')
  made.teach.max_tokens = 512
  made.align.max_tokens = 256
  made.sample.max_tokens = 256
  made.sft.update(max_tokens=256, batch_size=8)
  made.compute.update(num_rows=8, judge_tokens=256, loss_chunk=128, group=8)
  made.update_from_flattened_dict(changes)
  return made


def step(name: str, need: int, capacity: int = 100, **changes) -> steps.Step:
  """A step of made-up numbers."""
  made = steps.Step(
      name=name,
      held={'weights': 30, 'kv': 20},
      need=need,
      capacity=capacity,
      model_flops=100.0,
      flops=150.0,
      collective_bytes={'fsdp': 7},
      roofline=roofline.Roofline(0.5, 0.25, {'fsdp': 0.125}),
      tokens=64,
      rows=8,
      peak=400.0,
  )
  return dataclasses.replace(made, **changes)
