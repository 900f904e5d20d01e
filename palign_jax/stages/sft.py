"""Fine-tunes the student on the assembled rows.

Writes sft/checkpoints/, sft/metrics.jsonl, sft/adapter/ (LoRA) and sft/export/,
a Hugging Face folder with the adapters merged in.
"""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from palign_jax.checkpoints import hf_export, hf_import, store as store_lib
from palign_jax.core import config as config_lib, errors, keys, stopping
from palign_jax.judging import scorer
from palign_jax.models import decoder, kernels, lora, quantization
from palign_jax.parallel import mesh as mesh_lib, rules
from palign_jax.stages import (
    assemble,
    context as context_lib,
    settings as settings_lib,
)
from palign_jax.text import prompts, sentences
from palign_jax.training import (
    data,
    diagnosis,
    examples as examples_lib,
    loop,
    loss,
    metrics,
    optim,
    profiling,
    step,
)

EXPORT = 'sft/export/config.json'  # Comes last.
_MAX_WAITING = 64  # Examples that wait for a row with room.
_NUM_COMPARED = 4  # Examples on which the merge's error is measured.
_NUM_PLACES = 64  # Places in each.


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  optim.make(_optim(context), optim.schedule(_optim(context), 1))
  student = context.describe('student')
  check_sizes(context.settings, context.mesh, student.model.max_positions)
  student.tokenizer.chat.turn_end  # noqa: B018  Raises without a template.


def check_sizes(
    settings: settings_lib.Settings, mesh: jax.sharding.Mesh, max_positions: int
) -> None:
  """Raises as `check` does, where no file is needed to tell.

  Args:
    settings: The config.
    mesh: Of all devices.
    max_positions: Of the student.

  Raises:
    ConfigError: If the stage cannot run with this config.
  """
  s, compute = settings.sft, settings.compute
  _weights(s)
  if s.max_tokens > max_positions:
    raise errors.ConfigError(
        f'config.sft.max_tokens is {s.max_tokens} and the student has'
        f' {max_positions} positions; lower it.'
    )
  parts = mesh_lib.num_parts(mesh)
  if s.max_tokens % parts:
    raise errors.ConfigError(
        f'config.sft.max_tokens is {s.max_tokens} and config.mesh.sequence'
        f' {parts}; make the first a multiple of the second.'
    )
  if compute.attention == 'cudnn':
    raise errors.ConfigError(
        "config.compute.attention is 'cudnn', which would mix the examples of a"
        " packed row; take 'auto' or 'xla' for sft."
    )
  step.num_microbatches(s.batch_size, compute.rows_per_device, mesh)


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Trains, exports and returns the summary."""
  with contextlib.ExitStack() as stack:
    if context.peers.count > 1:  # One that leaves would leave others waiting.
      stack.enter_context(stopping.later())
    return _run(context)


def _run(context: context_lib.Context) -> Mapping[str, Any]:
  examples = _examples(context)
  source = data.shuffled(
      examples, context.settings.sft.epochs, context.settings.seed
  )
  batches = _batches(context, source)
  num_steps = batches.count()
  frozen, trainable = _weights_to_train(context)
  state, seconds = _train(context, frozen, trainable, batches, num_steps)
  if any(context.peers.gather(stopping.asked(), at='trained')):
    stopping.ask()
    raise stopping.Stopped
  trained = state.params
  del state  # The optimiser's moments make room for what is exported.
  facts = _export(context, frozen, trained, examples[:_NUM_COMPARED])
  tokens = sum(len(example.tokens) for example in examples)
  return {
      'examples': len(examples),
      'too_long': batches.num_long // context.settings.sft.epochs,
      'steps': num_steps,
      'supervised_weight': float(sum(e.weights.sum() for e in examples)),
      'trained_parameters': sum(x.size for x in jax.tree.leaves(trained)),
      **facts,
      **context_lib.rates(tokens * context.settings.sft.epochs, seconds),
  }


def _optim(context: context_lib.Context) -> optim.OptimConfig:
  values = dict(context.settings.sft.optim)
  return config_lib.build(optim.OptimConfig, values, at='config.sft.optim')


def _weights(s) -> examples_lib.RegionWeights:
  return config_lib.build(
      examples_lib.RegionWeights, dict(s.weights), at='config.sft.weights'
  )


def _num_microbatches(context: context_lib.Context) -> int:
  s = context.settings
  return step.num_microbatches(
      s.sft.batch_size, s.compute.rows_per_device, context.mesh
  )


def _examples(context: context_lib.Context) -> list[examples_lib.Example]:
  """Returns the training rows as tokens and weights.

  Raises:
    DataError: If there is no row, or one lacks a field.
  """
  s, path = context.settings, context.workdir / assemble.TRAIN
  fields = ('input', 'output')
  rows = context_lib.rows(context, assemble.TRAIN, 'assemble', fields)
  if not rows:
    raise errors.DataError(
        f'{path}: nothing to train on; assemble/rejected.jsonl says why. Raise'
        ' config.align.n or config.teach.limit (0 is all), or put rows in'
        f' {path.name}.'
    )
  tokenizer = context.describe('student').tokenizer
  markers = examples_lib.Markers(s.assemble.begin, s.assemble.end)
  built = []
  for number, row in enumerate(rows, 1):
    prompt = prompts.answer(s.prompts.answer, row['input'])
    regions = examples_lib.regions(
        row['output'],
        markers=markers,
        turn_end=tokenizer.chat.turn_end,
        weights=_weights(s.sft),
        pieces=lambda text: sentences.pieces(text, s.sft.splitter),
        masked=tuple(s.sft.masked),
    )
    name = str(row.get('id', number))
    built.append(
        examples_lib.build(
            name, tokenizer.chat.prompt(prompt), regions, tokenizer
        )
    )
  return built


def _batches(context: context_lib.Context, source) -> data.PackedBatches:
  s = context.settings.sft
  shape = data.DataConfig(
      max_tokens=s.max_tokens,
      batch_size=s.batch_size,
      max_waiting=_MAX_WAITING,
  )
  return data.PackedBatches(source, shape)


def _weights_to_train(context: context_lib.Context):
  """Returns what is frozen and what is trained: base and adapters, or all."""
  s, student = context.settings.sft, context.describe('student')
  if s.method == 'full':
    # Float32 master weights, whatever the student computes in.
    path = context.settings.student.path
    model = hf_import.load(path, dtype=jnp.float32, mesh=context.mesh)
    return {}, model.params
  config = student.model.config
  make = functools.partial(lora.init, config, s.rank, targets=s.targets)
  shapes = jax.eval_shape(lambda: make(jax.random.key(0)))
  where = rules.tree_shardings(
      shapes,
      lora.logical_axes(config, s.rank, s.targets),
      context.mesh,
  )
  key = jax.random.wrap_key_data(
      keys.fold(context.settings.seed, 'sft', 'lora')
  )
  base = context.load('student', stacked=True).params
  if s.quantize == 'int8':
    context.release()  # Its kernels are gone once they are in 8 bits.
    base = quantization.quantize(base, config, context.mesh)
  return base, jax.jit(make, out_shardings=where)(key)


def _scale(context: context_lib.Context) -> float:
  return context.settings.sft.alpha / context.settings.sft.rank


def _train(
    context, frozen, trainable, batches, num_steps
) -> tuple[step.TrainState, float]:
  """Returns the last state, and the seconds of all its steps."""
  s, compute = context.settings.sft, context.settings.compute
  student, optim_config = context.describe('student'), _optim(context)
  rate = optim.schedule(optim_config, num_steps)
  optimizer = optim.make(optim_config, rate)
  loss_config = loss.LossConfig(
      dtype=student.dtype.name,
      remat=s.remat,
      chunk_size=compute.loss_chunk,
      lora_scale=_scale(context),
      attention=kernels.Backend(compute.attention, context.mesh),
  )
  state = step.init(trainable, optimizer)
  pure = step.make(
      student.model.config,
      loss_config,
      optimizer,
      rate,
      optim_config.clip_norm,
      jax.tree.map(lambda x: x.sharding, state.params),
  )
  split = step.StepConfig(_num_microbatches(context))
  step_fn = step.compile(pure, split, frozen, state, context.mesh)

  def examine(state, batch):
    arrays = step.place(batch, split, context.mesh)
    params = lora.join(frozen, state.params)
    return diagnosis.examine(params, student.model.config, arrays, loss_config)

  length = loop.LoopConfig(
      num_steps=num_steps,
      log_every=compute.log_every,
      save_every=compute.save_every,
      save_every_s=compute.save_every_s,
  )
  folder = context.workdir / 'sft'
  profiler = profiling.Profiler(
      folder / 'profile', profiling.parse(compute.profile_steps)
  )
  with (
      store_lib.CheckpointStore(
          folder / 'checkpoints', keep=compute.keep, peers=context.peers
      ) as store,
      metrics.MetricsWriter(folder) as writer,
  ):
    state = loop.train(
        *(length, state, step_fn, batches, store, writer, examine, profiler)
    )
    return state, writer.seconds


def _export(context, frozen, params, compared) -> dict[str, Any]:
  """Writes the model that was trained; returns facts for the summary."""
  s, student = context.settings.sft, context.describe('student')
  dtype, folder = jnp.dtype(s.export_dtype), context.workdir / 'sft'
  facts: dict[str, Any] = {'method': s.method}
  if s.method == 'lora':
    hf_export.save_adapter(
        folder / 'adapter',
        params,
        student.model.config,
        alpha=s.alpha,
        base_name=context.settings.student.path,
    )
    merge = functools.partial(lora.merge, scale=_scale(context), dtype=dtype)
    # Into the weights as they were before they were in 8 bits.
    base = context.load('student', stacked=True).params
    merged = jax.jit(merge)(base, params)
    joined = lora.join(frozen, params)
  else:
    merged = joined = params
  merged = jax.tree.map(lambda x: x.astype(dtype), merged)
  error = _logit_error(context, joined, merged, compared, _scale(context))
  model = dataclasses.replace(student.model, params=merged)
  hf_export.save(
      folder / 'export',
      model,
      tokenizer_folder=student.model.folder,
      dtype=dtype,
  )
  return facts | {'export_dtype': dtype.name, 'export_logit_error': error}


def _logit_error(context, joined, merged, examples, scale) -> dict[str, float]:
  """Returns how far the exported weights' logits are from the trained ones'.

  Both are computed in float32, at places spread over training examples.
  """
  config = context.describe('student').model.config
  width = scorer.width(max(len(example.tokens) for example in examples))
  tokens_BT = np.zeros((len(examples), width), np.int32)
  places_Bp = np.zeros((len(examples), _NUM_PLACES), np.int32)
  for i, example in enumerate(examples):
    length = len(example.tokens)
    tokens_BT[i, :length] = example.tokens
    places_Bp[i] = np.linspace(0, length - 1, _NUM_PLACES)

  @functools.partial(jax.jit, out_shardings=mesh_lib.replicated(context.mesh))
  def logits(params, tokens, places):
    x_BTD = decoder.hidden(
        params,
        config,
        tokens,
        jnp.arange(width, dtype=jnp.int32)[None],
        None,
        dtype=jnp.float32,
        lora_scale=scale,
    )
    x_BpD = jnp.take_along_axis(x_BTD, places[..., None], axis=1)
    return decoder.logits(params, config, x_BpD)

  worst, changed = 0.0, 0.0
  for tokens, places in zip(tokens_BT, places_Bp, strict=True):
    one, two = (logits(p, tokens[None], places[None]) for p in (joined, merged))
    one, two = np.asarray(one), np.asarray(two)
    worst = max(worst, float(np.max(np.abs(one - two))))
    changed += float(np.mean(one.argmax(-1) != two.argmax(-1)))
  return {'max': worst, 'argmax_changed': changed / len(examples)}
