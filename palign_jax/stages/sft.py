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

from palign_jax.checkpoints import hf_export, hf_import, store as store_lib
from palign_jax.core import (
    config as config_lib,
    errors,
    jsonl,
    keys,
    stopping,
)
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
    export_error,
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
  s, rows = context.settings.sft, _examples(context)
  examples = data.fitting(rows, s.max_tokens)
  source = data.shuffled(examples, s.epochs, context.settings.seed)
  batches = _batches(context, source)
  num_steps = batches.count()
  frozen = _frozen(context)
  state, seconds = _train(context, frozen, batches, num_steps)
  if any(context.peers.gather(stopping.asked(), at='trained')):
    stopping.ask()
    raise stopping.Stopped
  trained = state.params
  del state  # The optimiser's moments make room for what is exported.
  facts = _export(context, frozen, trained, examples[:_NUM_COMPARED])
  tokens = sum(len(example.tokens) for example in examples)
  return {
      'examples': len(rows),
      'too_long': len(rows) - len(examples),
      'steps': num_steps,
      'supervised_weight': float(sum(e.weights.sum() for e in examples)),
      'trained_parameters': sum(x.size for x in jax.tree.leaves(trained)),
      **facts,
      **context_lib.rates(tokens * s.epochs, seconds),
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
  """Returns the training rows as tokens and weights, also the long ones.

  Raises:
    DataError: If there is no row, or one cannot be trained on.
  """
  path, fields = context.workdir / assemble.TRAIN, ('input', 'output')
  rows = context_lib.rows(context, assemble.TRAIN, 'assemble', fields)
  if not rows:
    raise errors.DataError(
        f'{path}: nothing to train on; assemble/rejected.jsonl says why. Raise'
        ' config.align.n or config.teach.limit (0 is all), or put rows in'
        f' {path.name}.'
    )
  built = []
  for number, row in enumerate(rows, 1):
    try:
      built.append(_example(context, str(row.get('id', number)), row))
    except errors.DataError as e:
      raise errors.DataError(f'{path}, row {number}: {e}') from e
  return built


def _example(
    context: context_lib.Context, name: str, row: jsonl.Row
) -> examples_lib.Example:
  s, tokenizer = context.settings, context.describe('student').tokenizer
  regions = examples_lib.regions(
      row['output'],
      markers=examples_lib.Markers(s.assemble.begin, s.assemble.end),
      turn_end=tokenizer.chat.turn_end,
      weights=_weights(s.sft),
      pieces=lambda text: sentences.pieces(text, s.sft.splitter),
      masked=tuple(s.sft.masked),
  )
  prompt = tokenizer.chat.prompt(prompts.answer(s.prompts.answer, row['input']))
  return examples_lib.build(name, prompt, regions, tokenizer)


def _batches(context: context_lib.Context, source) -> data.PackedBatches:
  s = context.settings.sft
  shape = data.DataConfig(
      max_tokens=s.max_tokens,
      batch_size=s.batch_size,
      max_waiting=_MAX_WAITING,
  )
  return data.PackedBatches(source, shape)


def _frozen(context: context_lib.Context) -> decoder.Params:
  """Returns the weights that are not trained: none, or those below adapters."""
  s = context.settings.sft
  if s.method == 'full':
    context.release()  # What judging and sampling held.
    return {}
  base = context.load('student', stacked=True).params
  if s.quantize == 'int8':
    context.release()  # Its kernels are gone once they are in 8 bits.
    config = context.describe('student').model.config
    base = quantization.quantize(base, config, context.mesh)
  return base


def _adapters(context: context_lib.Context, key: jax.Array) -> decoder.Params:
  s, config = context.settings.sft, context.describe('student').model.config
  return lora.init(config, s.rank, key, targets=s.targets)


def _shapes(context: context_lib.Context) -> decoder.Params:
  """Returns shapes and places of what is trained: all weights, or adapters.

  All are float32, whatever the student computes in.
  """
  s, config = context.settings.sft, context.describe('student').model.config
  if s.method == 'full':
    shapes = decoder.abstract(config, jnp.float32)
    axes = decoder.logical_axes(config)
  else:
    shapes = jax.eval_shape(lambda: _adapters(context, jax.random.key(0)))
    axes = lora.logical_axes(config, s.rank, s.targets)
  where = rules.tree_shardings(shapes, axes, context.mesh)
  place = lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at)
  return jax.tree.map(place, shapes, where)


def _untrained(context: context_lib.Context, shapes: Any) -> decoder.Params:
  """Returns what is trained as it is before the first step."""
  if context.settings.sft.method == 'full':
    path = context.settings.student.path
    return hf_import.load(path, dtype=jnp.float32, mesh=context.mesh).params
  key = jax.random.wrap_key_data(
      keys.fold(context.settings.seed, 'sft', 'lora')
  )
  where = jax.tree.map(lambda x: x.sharding, shapes)
  make = functools.partial(_adapters, context)
  return jax.jit(make, out_shardings=where)(key)


def _scale(context: context_lib.Context) -> float:
  return context.settings.sft.alpha / context.settings.sft.rank


def _train(
    context, frozen, batches, num_steps
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
  shapes = _shapes(context)
  like = step.abstract(shapes, optimizer)
  begin = lambda: step.init(_untrained(context, shapes), optimizer)
  pure = step.make(
      student.model.config,
      loss_config,
      optimizer,
      rate,
      optim_config.clip_norm,
      jax.tree.map(lambda x: x.sharding, shapes),
  )
  split = step.StepConfig(_num_microbatches(context))
  step_fn = step.compile(pure, split, frozen, like, context.mesh)

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
        *(length, like, begin, step_fn, batches, store, writer),
        examine=examine,
        profiler=profiler,
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
  error = export_error.measure(
      joined,
      merged,
      student.model.config,
      compared,
      mesh=context.mesh,
      lora_scale=_scale(context),
  )
  model = dataclasses.replace(student.model, params=merged)
  hf_export.save(
      folder / 'export',
      model,
      tokenizer_folder=student.model.folder,
      dtype=dtype,
  )
  return facts | {'export_dtype': dtype.name, 'export_logit_error': error}
