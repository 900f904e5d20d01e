"""Small stand-ins that many tests share."""

from collections.abc import Mapping
import json
import threading
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from configs import common
from palign_jax.checkpoints import hf_export, hf_import
from palign_jax.core import jsonl, stopping
from palign_jax.models import config as config_lib, decoder
from palign_jax.parallel import mesh as mesh_lib

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' +"
    " m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_SPECIALS = ('<|endoftext|>', '<|im_start|>', '<|im_end|>')
_LINES = (
    'Please reason step by step, and put your final answer within \\boxed{}.',
    'Question: Anna has 12 apples and buys 7 more. How many has she now?',
    'First, 12 plus 7 is 19. Wait, let me check that again. Yes, it is 19.',
    'So the answer is \\boxed{19}. Enough to finish? [ENOUGH] [NOT_ENOUGH]',
    '<Begin_of_Prefix> Reasoning: <End_of_Prefix> Continue.',
    'user assistant system',
)


def tokenizer_folder(
    path: epath.PathLike,
    *,
    template: str | None = CHATML,
    specials: tuple[str, ...] = _SPECIALS,
    settings: Mapping[str, Any] | None = None,
) -> epath.Path:
  """Writes a tiny tokenizer as a Hugging Face folder, the same each time.

  Byte-level BPE of some 320 tokens: any text encodes, digits one by one.

  Args:
    path: The folder, made if missing; other files in it are left alone.
    template: Its chat template; None for a tokenizer without.
    specials: Its special tokens, with ids from 0.
    settings: More fields of tokenizer_config.json.

  Returns:
    `path`.
  """
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
      [
          pre_tokenizers.Digits(individual_digits=True),
          pre_tokenizers.ByteLevel(add_prefix_space=False),
      ]
  )
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
      vocab_size=len(specials) + 317,
      special_tokens=list(specials),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
  )
  tokenizer.train_from_iterator(_LINES, trainer)
  path = epath.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  tokenizer.save(str(path / 'tokenizer.json'))
  config = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'eos_token': specials[-1],
      'pad_token': specials[0],
      'clean_up_tokenization_spaces': False,
      **({} if template is None else {'chat_template': template}),
      **(settings or {}),
  }
  (path / 'tokenizer_config.json').write_text(json.dumps(config))
  return path


def model_folder(
    path: epath.PathLike,
    *,
    seed: int = 0,
    max_positions: int = 512,
    stop: float = 0.11,
    **numbers: Any,
) -> epath.Path:
  """Writes a tiny random Qwen2 folder, float32, with the fake tokenizer.

  Args:
    path: The folder.
    seed: Of its weights.
    max_positions: Of its config.json.
    stop: How much it likes to end its turn: at 0.11 about every tenth token.
    **numbers: Other fields of the ModelConfig.

  Returns:
    `path`.
  """
  path = epath.Path(path)
  # The tokenizer has 320.
  config = model_config(**{'vocab_size': 352, 'head_dim': 8, **numbers})
  rng = np.random.default_rng(seed)
  draw = lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32)
  params = jax.tree.map(draw, decoder.abstract(config, jnp.dtype('float32')))
  ends = _SPECIALS.index('<|im_end|>')
  # All tokens have something in common, by which the head can always stop.
  params['embed']['table'] += 1
  params['final_norm']['scale'] += 1
  if not config.tied:
    params['lm_head']['kernel'][:, ends] = stop
  model = hf_import.Model(
      config=config,
      params=jax.tree.map(jnp.asarray, params),
      stop_ids=(ends,),
      max_positions=max_positions,
      raw_config={
          'max_position_embeddings': max_positions,
          'bos_token_id': 0,
          'eos_token_id': ends,
      },
      raw_generation={},
      folder=None,
  )
  # Beside it: an export replaces its folder.
  source = tokenizer_folder(path.with_name(path.name + '_tokenizer'))
  hf_export.save(path, model, tokenizer_folder=source, dtype=jnp.float32)
  return path


def model_config(**numbers: Any) -> config_lib.ModelConfig:
  """Returns a tiny Qwen2, but for the numbers that are named."""
  tiny = {
      'vocab_size': 64,
      'num_layers': 2,
      'embed_dim': 32,
      'num_heads': 4,
      'num_kv_heads': 2,
      'head_dim': 16,
      'mlp_dim': 48,
      'norm_eps': 1e-6,
      'rope_theta': 1e4,
      'rope_scaling': None,
      'qkv_bias': True,
      'qk_norm': False,
      'tied': False,
  }
  return config_lib.ModelConfig(**{**tiny, **numbers})


class Peers:
  """One of several processes, which are threads of this one."""

  def __init__(self, index: int, count: int, said: list, barrier):
    self.index, self.count = index, count
    self._said, self._barrier = said, barrier

  @classmethod
  def team(cls, count: int) -> list['Peers']:
    """Returns all of them."""
    said, barrier = [None] * count, threading.Barrier(count, timeout=60)
    return [cls(i, count, said, barrier) for i in range(count)]

  def gather(self, value: Any, at: str) -> list[Any]:
    """Returns all values, once all have come to the same place."""
    self._said[self.index] = (at, value)
    self._barrier.wait()
    said = list(self._said)
    self._barrier.wait()
    self.check()
    return [value for _, value in said]

  def check(self) -> None:
    """Raises if the process is to end."""
    stopping.check()

  def leave(self, code: int, reason: str) -> None:
    """Nobody listens."""


def one_device() -> jax.sharding.Mesh:
  """Returns a mesh of the first device alone."""
  return jax.make_mesh(
      (1,) * len(mesh_lib.AXES),
      mesh_lib.AXES,
      axis_types=(jax.sharding.AxisType.Auto,) * len(mesh_lib.AXES),
      devices=jax.devices()[:1],
  )


def traces(num: int) -> list[dict[str, Any]]:
  """Ready traces; each says its answer early, so that any prefix holds it."""
  rows = []
  for i in range(num):
    a, b = 3 + i, 2 + i
    lines = [
        f'So it is \\boxed{{{a + b}}}.',
        f'First, {a} plus {b} is {a + b}.',
        'Wait, let me check that again.',
        f'Yes: é {a + b}!',
        '\nEnough. Yes, it is.',
        'Done',
    ]
    rows.append(
        {
            'id': f't{i}',
            'question': f'Anna has {a} apples and buys {b} more. How many?',
            'answer': str(a + b),
            'Long-CoT': ' '.join(lines[: 3 + i % 4]) + ' \n' * (i % 2),
        }
    )
  return rows


def config(
    folder: epath.PathLike, student: epath.PathLike, num_traces: int = 5
) -> ml_collections.ConfigDict:
  """Returns a config of seconds; its inputs are written into `folder`."""
  folder = epath.Path(folder)
  jsonl.write(folder / 'traces.jsonl', traces(num_traces))
  problems = [
      {'id': i, 'problem': f'What is {i} plus 1?', 'answer': i + 1}
      for i in range(3)
  ]
  jsonl.write(folder / 'benchmark.jsonl', problems)
  result = common.base()
  result.mesh.update(data=-1, fsdp=1)
  result.prompts.update(judge='brief', align='brief', answer='brief')
  result.student.update(path=str(student), dtype='float32')
  result.teach.traces = str(folder / 'traces.jsonl')
  drawing = dict(temperature=1.0, max_tokens=24)
  result.teach.update(drawing)
  result.align.update(n=3, **drawing)
  result.sample.update(n=2, **drawing)
  result.truncate.max_tokens = 8
  result.sft.update(
      rank=2,
      epochs=2,
      max_tokens=256,
      remat='none',
      export_dtype='float32',
  )
  result.sft.optim.peak_lr = 1e-2
  result.grade.resamples = 100
  result.compute.update(
      num_rows=16,
      judge_tokens=4096,
      prefill_tokens=4096,
      group=2,
      part_rows=2,
      loss_chunk=0,
      workers=1,
      log_every=1,
      save_every=2,
  )
  result.benchmarks.sums = str(folder / 'benchmark.jsonl')
  return result
