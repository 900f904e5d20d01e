"""What stages share: the checked config, the workdir, the loaded models."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import math
import reprlib
import time

from absl import logging
import jax
import jax.numpy as jnp

from palign_jax.checkpoints import folders, hf_import
from palign_jax.core import (
    errors,
    jsonl,
    keys,
    parts as parts_lib,
    peers as peers_lib,
    progress,
    workdir as workdir_lib,
)
from palign_jax.models import config as config_lib, decoder, kernels, lora
from palign_jax.parallel import local, mesh as mesh_lib
from palign_jax.sampling import loops, sampler as sampler_lib
from palign_jax.stages import settings as settings_lib
from palign_jax.text import tokenizer as tokenizer_lib


@dataclasses.dataclass(frozen=True)
class Student:
  """A model with its tokenizer, ready to judge, sample or be trained."""

  model: hf_import.Model
  tokenizer: tokenizer_lib.Tokenizer
  params: decoder.Params  # With adapters, if it has any.
  lora_scale: float
  dtype: jnp.dtype

  @property
  def stop_ids(self) -> tuple[int, ...]:
    """The ids that end a reply."""
    ids = (*self.model.stop_ids, *self.tokenizer.eos_ids)
    return tuple(dict.fromkeys(ids))


@dataclasses.dataclass(frozen=True)
class Ask:
  """A completion to sample: `id` and `sample` name it."""

  id: str
  sample: int
  prompt: str
  key: tuple[str | int, ...]  # What the draw's key is folded from.
  tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reply:
  """What was sampled, and why it ended: stop, length, loop or too_long."""

  ask: Ask
  text: str
  finish_reason: str
  num_tokens: int


class Context:
  """One run."""

  def __init__(
      self,
      settings: settings_lib.Settings,
      workdir: workdir_lib.Workdir,
      peers: peers_lib.Peers | None = None,
  ):
    """Makes a run of a config in a workdir, by these processes."""
    self.settings, self.workdir = settings, workdir
    self.peers = peers or peers_lib.Alone()
    self._held: tuple[tuple[str, bool], Student] | None = None

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    """The devices of all hosts: for training."""
    return mesh_lib.make(self.settings.mesh)

  @functools.cached_property
  def local_mesh(self) -> jax.sharding.Mesh:
    """The devices of this host: for stages that divide their rows."""
    return local.mesh(mesh_lib.whole_rows(self.mesh))

  @functools.lru_cache(maxsize=2)  # noqa: B019  A run has one context.
  def describe(self, which: str) -> Student:
    """Returns a model of the config without its weights: all that can fail.

    Raises:
      CheckpointError: If it cannot be loaded.
      ConfigError: If these devices cannot take it as the config says.
    """
    config = getattr(self.settings, which)
    if not config.path:
      raise errors.ConfigError(
          f'config.{which}.path is not set; name a model folder (or, for a'
          ' teacher, set config.teach.traces to ready traces).'
      )
    dtype = jnp.dtype(config.dtype)
    model = hf_import.describe(config.path, dtype=dtype)
    tokenizer = tokenizer_lib.load(model.folder)
    hf_import.check_vocab(model, tokenizer.size)
    self._check_mesh(config.path, model.config)
    attention = kernels.Backend(self.settings.compute.attention, self.mesh)
    attention.check(dtype, model.config.head_dim)
    return Student(model, tokenizer, model.params, 0.0, dtype)

  def check_rows(self) -> None:
    """Raises if judging and sampling cannot divide a batch over a host."""
    local.check_rows(self.settings.compute.num_rows, self.local_mesh)

  def _check_mesh(self, path: str, model: config_lib.ModelConfig) -> None:
    """Raises if a model does not split over the mesh."""
    for axis, sizes in (
        (
            'tensor',
            {
                'heads': model.num_heads,
                'key-value heads': model.num_kv_heads,
                'MLP channels': model.mlp_dim,
                'rows of the vocabulary': model.vocab_size,
            },
        ),
        ('fsdp * sequence', {'channels': model.embed_dim}),
    ):
      ways = math.prod(self.mesh.shape[a] for a in axis.split(' * '))
      for name, size in sizes.items():
        if size % ways:
          raise errors.ConfigError(
              f'config.mesh.{axis} is {ways} and {path} has {size}'
              f' {name}, which do not split so; take a divisor of'
              f' {math.gcd(*sizes.values())}.'
          )

  def load(self, which: str, *, stacked: bool = False) -> Student:
    """Returns a model of the config; the one returned before is let go.

    Args:
      which: 'student' or 'teacher'.
      stacked: As training wants the layers, over all hosts' devices; else as
        judging and sampling do, on this host's.

    Raises:
      CheckpointError: If it cannot be loaded.
    """
    if self._held is None or self._held[0] != (which, stacked):
      self._held = None  # Two models at once might not fit.
      described = self.describe(which)
      params = self._read(described.model.folder, described.dtype, stacked)
      student = dataclasses.replace(described, params=params)
      self._held = (which, stacked), student
    return self._held[1]

  def release(self) -> None:
    """Lets the model go that `load` returned: its arrays are the caller's."""
    self._held = None

  def _read(self, folder, dtype, stacked: bool) -> decoder.Params:
    mesh = self.mesh if stacked else self.local_mesh
    params = hf_import.load(folder, dtype=dtype, mesh=mesh).params
    return params if stacked else decoder.unstack(params, consume=True)

  def trained(self) -> Student:
    """Returns the student after `sft`: its export, or base and adapter."""
    folder = self.workdir / 'sft'
    if self.settings.sft.method == 'full':
      self._held = None
      student = self.describe('student')
      params = self._read(folder / 'export', student.dtype, False)
      return dataclasses.replace(student, params=params)
    student = self.load('student')
    adapters, scale = hf_import.load_adapter(
        folders.stage(folder / 'adapter'),
        student.model.config,
        mesh=self.local_mesh,
    )
    params = lora.join(student.params, decoder.unstack(adapters))
    return dataclasses.replace(student, params=params, lora_scale=scale)

  def check_stop(self, section: str, stop: Sequence[str], role: str) -> None:
    """Raises if a stop string of a section can never appear in a text."""
    tokenizer = self.describe(role).tokenizer
    tokenizer_lib.check_stop(tokenizer, stop, f'config.{section}.stop')

  def sampler(self, student: Student, drawing) -> sampler_lib.Sampler:
    """Returns a sampler; `drawing` has the fields of `settings.Drawing`."""
    compute = self.settings.compute
    return sampler_lib.Sampler(
        student.params,
        student.model.config,
        mesh=self.local_mesh,
        dtype=student.dtype,
        num_rows=compute.num_rows,
        stop_ids=student.stop_ids,
        vocab_limit=student.tokenizer.size,
        max_positions=student.model.max_positions,
        sampling=sampler_lib.SamplingConfig(
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            repetition_penalty=drawing.repetition_penalty,
        ),
        loop_rule=loops.DEFAULT,
        prefill_tokens=compute.prefill_tokens,
        attention=compute.attention,
        lora_scale=student.lora_scale,
        stop_strings=drawing.stop,
        # Without stop strings nobody need look at the text meanwhile.
        tokenizer=student.tokenizer if drawing.stop else None,
    )

  def sample(
      self,
      student: Student,
      drawing,
      asks: Sequence[Ask],
      description: str,
  ) -> Iterator[Reply]:
    """Yields a reply for every ask, in the order they finish.

    A prompt that leaves no room for an answer is no error: its reply is empty
    and ends with 'too_long'.  One that leaves little room gets that much.
    """
    limit = student.model.max_positions
    fits = [ask for ask in asks if len(ask.tokens) < limit]
    for ask in asks:
      if len(ask.tokens) >= limit:
        yield Reply(ask, '', 'too_long', 0)
    by_id = {f'{ask.id}/{ask.sample}': ask for ask in fits}
    requests = [
        sampler_lib.Request(
            id=name,
            tokens=ask.tokens,
            key=keys.fold(self.settings.seed, *ask.key, ask.sample),
            max_tokens=min(drawing.max_tokens, limit - len(ask.tokens)),
        )
        for name, ask in by_id.items()
    ]
    sampler = self.sampler(student, drawing)
    with progress.bar(description, len(requests)) as advance:
      for completion in sampler.run(requests):
        text = completion.decoded(student.tokenizer)
        reason, num = completion.finish_reason, len(completion.tokens)
        yield Reply(by_id[completion.id], text, reason, num)
        advance(1)
    logging.info(
        '%s: %d programs, %.1f%% of %d decoded row-steps of use.',
        description,
        len(sampler.programs),
        100 * sampler.useful,
        sampler.row_steps,
    )


def ask(
    student: Student,
    id: str,
    sample: int,
    prompt: str,
    key: tuple[str | int, ...],
) -> Ask:
  """Returns an ask for a rendered prompt."""
  tokens = tuple(student.tokenizer.encode(prompt))
  return Ask(id, sample, prompt, key, tokens)


class Clock:
  """Seconds and tokens of a stage, for its summary."""

  def __init__(self):
    self._start = time.monotonic()

  def rates(self, tokens: int) -> dict[str, object]:
    """Returns the fields `tokens`, `seconds` and `rates` of a summary."""
    return rates(tokens, time.monotonic() - self._start)


def rates(tokens: float | int, seconds: float | int) -> dict[str, object]:
  """Returns the fields `tokens`, `seconds` and `rates` of a summary."""
  rate = tokens / max(seconds, 1e-9)
  return {
      'tokens': int(tokens),
      'seconds': round(seconds, 2),
      'rates': {'tokens_per_s': round(rate, 1)},
  }


def totals(tally: parts_lib.Tally) -> dict[str, object]:
  """Returns the same of what the parts of a stage have counted."""
  return rates(tally.get('tokens', 0), tally.get('seconds', 0))


def open_parts(
    context: Context, file: str, key: Callable[[jsonl.Row], str]
) -> parts_lib.Parts:
  """Returns the parts of a file of the workdir."""
  return parts_lib.Parts(
      context.workdir / file,
      key=key,
      max_rows=context.settings.compute.part_rows,
      peers=context.peers,
  )


def chunks(
    context: Context,
    parts: parts_lib.Parts,
    names: Sequence[str],
    description: str,
) -> Iterator[tuple[list[str], Callable[[int], None]]]:
  """Yields this host's rows that are not done, as many as fit in a part.

  Args:
    context: Of the run.
    parts: Has what is done.
    names: Of all rows, on all hosts.
    description: For the progress bar, whose `advance` is yielded as well.
  """
  share = peers_lib.share(context.peers, names)
  todo = [name for name in share if name not in parts]
  size = context.settings.compute.part_rows
  with progress.bar(description, len(todo)) as advance:
    for begin in range(0, len(todo), size):
      yield todo[begin : begin + size], advance


def count(values: Iterable[str]) -> dict[str, int]:
  """Returns how often each value occurs, by name."""
  counts: dict[str, int] = {}
  for value in values:
    counts[value] = counts.get(value, 0) + 1
  return dict(sorted(counts.items()))


def require(context: Context, file: str, stage: str) -> None:
  """Raises unless an earlier stage has written `file`.

  Raises:
    DataError: If it has not.
  """
  path = context.workdir / file
  if not path.exists():
    raise errors.DataError(
        f'{path}: not there; run the stage {stage!r} first, or put the'
        " reference's file there."
    )


def rows(
    context: Context, file: str, stage: str, fields: Sequence[str]
) -> list[jsonl.Row]:
  """Returns what an earlier stage, or the reference, has written.

  Args:
    context: Of the run.
    file: In the workdir.
    stage: Which stage writes it.
    fields: What every row must have, as text.

  Returns:
    The rows; none if the stage had nothing to write.

  Raises:
    DataError: If the file is not there, or a row lacks a field.
  """
  require(context, file, stage)
  path = context.workdir / file
  found = jsonl.read(path) if path.stat().length else []
  for number, row in enumerate(found, 1):
    for field in fields:
      if field not in row:
        raise errors.DataError(
            f'{path}, row {number}: no {field!r} in {sorted(row)}.'
        )
      if not isinstance(row[field], str):
        raise errors.DataError(
            f'{path}, row {number}: the {field!r} is'
            f' {reprlib.repr(row[field])} ({type(row[field]).__name__}); it'
            ' must be text.'
        )
  return found
