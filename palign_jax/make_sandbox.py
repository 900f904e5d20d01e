"""Trains the sandbox's models: the recipe is configs/sandbox.py.

  python -m palign_jax.make_sandbox --config=configs/sandbox.py --workdir=DIR

Uses the trainer, checkpoints and exporter of every other run.  An interrupted
training goes on from its last checkpoint; a finished one is not run again.
"""

import dataclasses
import functools

from absl import app, flags, logging
from etils import epath
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_flags

from palign_jax.checkpoints import hf_export, hf_import, store as store_lib
from palign_jax.core import command, config as config_lib, jsonl, keys
from palign_jax.models import config as model_config_lib, decoder
from palign_jax.parallel import compiled
from palign_jax.sandbox import (
    benchmark,
    corpus as corpus_lib,
    tokenizer as bpe,
)
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from palign_jax.training import (
    data,
    examples,
    loop,
    loss,
    metrics,
    optim,
    step,
)

MARKERS = ('<Begin_of_Prefix>', '<End_of_Prefix>\n')
_ENDLESS = 1 << 31

_CONFIG = config_flags.DEFINE_config_file('config', None, 'The recipe.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where results go.')


class Lessons:
  """Training examples of one run, by number and without end."""

  def __init__(self, config, run, tokenizer: tokenizer_lib.Tokenizer):
    """Args are the whole config, one of config.runs, and the tokenizer."""
    make = lambda kinds, steps: corpus_lib.Corpus(
        corpus_lib.CorpusConfig(
            kinds=dict(kinds),
            steps={int(k): w for k, w in steps.items()},
            seed=config.seed,
        )
    )
    self._rows = make(run.kinds, run.steps)
    self._judged = make({'judge': 1.0}, config.judge_steps)
    self._first = run.first_row
    self._prompts = config.prompts
    self._tokenizer = tokenizer

  def __len__(self) -> int:
    return _ENDLESS

  def __getitem__(self, index: int) -> examples.Example:
    row = self._rows[self._first + index]
    if row['kind'] == 'judge':
      row = self._judged[self._first + index]
    chat = self._tokenizer.chat
    answer = [
        examples.Region('reply', row['reply'], 1.0),
        examples.Region('turn_end', chat.turn_end, 1.0),
    ]
    prompt = chat.prompt(self._user(row))
    return examples.build(str(index), prompt, answer, self._tokenizer)

  def _user(self, row) -> str:
    names, question = self._prompts, row['question']
    match row['kind']:
      case 'judge':
        return prompts.judge(names.judge, question, row['prefix'])
      case 'continue':
        return prompts.align(names.align, question, row['prefix'])
    return prompts.answer(names.answer, question)


def build_tokenizer(config, folder: epath.Path) -> tokenizer_lib.Tokenizer:
  """Returns the tokenizer in `folder`, learnt first if it is not there."""
  if not (folder / 'tokenizer_config.json').exists():
    names = config.prompts
    texts = [
        prompts.answer(names.answer, ''),
        prompts.judge(names.judge, '', ''),
        prompts.align(names.align, '', ''),
        prompts.ENOUGH,
        prompts.NOT_ENOUGH,
        *MARKERS,
    ]
    # A student that has read nothing but stories could not spell them.
    bpe.build(folder, texts, [marker.strip() for marker in MARKERS])
  return tokenizer_lib.load(folder)


def model_config(config, vocab_size: int) -> model_config_lib.ModelConfig:
  """Returns the numbers of both models: a small Qwen2.5."""
  fields = config.model.to_dict()
  del fields['max_positions']
  multiple = fields.pop('vocab_multiple')
  return model_config_lib.ModelConfig(
      vocab_size=-(-vocab_size // multiple) * multiple,
      rope_scaling=None,
      qkv_bias=True,
      qk_norm=False,
      tied=True,
      **fields,
  )


def first_model(config, tokenizer: tokenizer_lib.Tokenizer) -> hf_import.Model:
  """Returns a model with random weights, as a Hugging Face folder has it."""
  numbers = model_config(config, tokenizer.size)
  init = functools.partial(decoder.init, numbers, dtype=jnp.float32)
  key = jax.random.wrap_key_data(keys.fold(config.seed, 'init'))
  return hf_import.Model(
      config=numbers,
      params=jax.jit(init)(key),
      stop_ids=tokenizer.eos_ids,
      max_positions=config.model.max_positions,
      raw_config={
          'architectures': ['Qwen2ForCausalLM'],
          'model_type': 'qwen2',
          'eos_token_id': tokenizer.eos_ids[0],
          'max_position_embeddings': config.model.max_positions,
      },
      raw_generation={},
      folder=None,
  )


def train(config, run, folder: epath.Path, tokenizer, model: hf_import.Model):
  """Trains one run from `model` on and returns the model it ends with."""
  optim_config = config_lib.build(
      optim.OptimConfig,
      config.optim.to_dict() | {'peak_lr': run.peak_lr},
      at='config.optim',
  )
  rate = optim.schedule(optim_config, run.num_steps)
  optimizer = optim.make(optim_config, rate)
  loss_config = loss.LossConfig(
      dtype='float32', remat='none', chunk_size=0, lora_scale=0.0
  )
  pure = step.make(
      model.config, loss_config, optimizer, rate, optim_config.clip_norm
  )
  like = step.abstract(model.params, optimizer)
  begin = functools.partial(step.init, model.params, optimizer)
  step_fn = step.compile(pure, step.StepConfig(1), {}, like, None)
  batches = data.PackedBatches(
      Lessons(config, run, tokenizer),
      config_lib.build(
          data.DataConfig, config.data.to_dict(), at='config.data'
      ),
  )
  length = loop.LoopConfig(num_steps=run.num_steps, **config.loop.to_dict())
  with (
      store_lib.CheckpointStore(folder / 'checkpoints', keep=1) as store,
      metrics.MetricsWriter(folder) as writer,
  ):
    state = loop.train(length, like, begin, step_fn, batches, store, writer)
  return dataclasses.replace(model, params=state.params)


def make(config, workdir: epath.Path) -> None:
  """Makes the tokenizer and trains every run that has no export yet."""
  tokenizer = build_tokenizer(config, workdir / 'tokenizer')
  for name in ('questions', 'benchmark'):
    rows = benchmark.questions(**config[name].to_dict())
    jsonl.write(workdir / f'{name}.jsonl', rows)
  for run in map(ml_collections.ConfigDict, config.runs):
    folder = workdir / run.name
    if (folder / 'export' / 'config.json').exists():
      logging.info('%s is there already.', folder / 'export')
      continue
    if run.init_from:
      source = workdir / run.init_from / 'export'
      model = hf_import.load(source, dtype=jnp.float32)
    else:
      model = first_model(config, tokenizer)
    logging.info('Training %s: %s', run.name, model.config)
    hf_export.save(
        folder / 'export',
        train(config, run, folder, tokenizer, model),
        tokenizer_folder=workdir / 'tokenizer',
        dtype=jnp.float32,
    )


def main(argv: list[str]):
  """Reads flags."""
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments: {argv[1:]}.')
  command.quiet_libraries()
  compiled.keep()
  with command.one_line_errors():
    make(_CONFIG.value, epath.Path(_WORKDIR.value))


if __name__ == '__main__':
  flags.mark_flags_as_required(['config', 'workdir'])
  app.run(main, flags_parser=command.parse)
