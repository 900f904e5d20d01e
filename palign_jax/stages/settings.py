"""The sections of a config, typed.  Every field is set in the config file.

A section that is no stage's own: `mesh` (parallel/mesh.py), `benchmarks` (name
to file), `seed`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from palign_jax.core import config as config_lib, errors
from palign_jax.judging import rules
from palign_jax.models import decoder, kernels, remat
from palign_jax.text import sentences
from palign_jax.training import optim, profiling

CHOICES = {
    'truncate.splitter': sentences.SPLITTERS,
    'truncate.verdict': ('label', 'generate', 'verified'),
    'truncate.abstained': ('no', 'verify'),
    'truncate.rule': tuple(rules.RULES),
    'truncate.calibration': ('none', 'prior'),
    'truncate.calibration_fit': ('threshold', 'platt'),
    'truncate.none_enough': ('whole', 'drop', 'most_probable'),
    'truncate.too_long': ('drop', 'fit'),
    'align.mode': ('prefill', 'draft'),
    'assemble.keep': ('first', 'all'),
    'assemble.unverifiable': ('drop', 'keep'),
    'sft.splitter': sentences.SPLITTERS,
    'sft.method': ('lora', 'full'),
    'sft.quantize': ('none', 'int8'),
    'sft.remat': remat.NAMES,
    'compute.attention': kernels.NAMES,
}
DTYPES = ('float32', 'bfloat16', 'float16')
_NOT_COUNTS = (  # Fields of compute that may be 0, or are no number.
    *('loss_chunk', 'memory_gib', 'shared_trunk', 'attention'),
    'profile_steps',
)


@dataclasses.dataclass(frozen=True)
class Model:
  """A model folder.

  Attributes:
    path: On disk, on gs://, or a name on the Hub; None if no stage needs it.
    dtype: Of frozen weights, computation and cache.
  """

  path: str | None
  dtype: str


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Names of prompts in text/prompts.py."""

  judge: str
  align: str
  answer: str


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How completions are sampled.

  Attributes:
    n: Completions per question.
    temperature: 0 is greedy.
    top_k: 0 is off.
    top_p: 1 is off.
    repetition_penalty: 1 is off; counts prompt and output.
    max_tokens: Of a completion.
    stop: Texts before the first of which a completion ends, if it has any.
  """

  n: int
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]


@dataclasses.dataclass(frozen=True)
class Teach:
  """Where traces come from: `traces` if it is set, else the teacher.

  Attributes:
    questions: A question file for the teacher.
    traces: Ready traces: a file, tfds:FOLDER or hf:FOLDER.
    fields: A preset of data/traces.py or a mapping.
    limit: At most so many rows; 0 is all.
  """

  questions: str | None
  traces: str | None
  fields: Any
  limit: int
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]


@dataclasses.dataclass(frozen=True)
class Verify:
  """How the student's own continuations prove a cut.

  Attributes:
    k: Continuations of a cut.
    pass_rate: A cut suffices if at least this share of them is right.
    max_cuts: Longer cuts that are tried when the proposed one fails.
    temperature: 0 is greedy.
    top_p: 1 is off.
    repetition_penalty: 1 is off.
    max_tokens: Of a continuation; one that is cut off is not right.
    stop: Texts that end a continuation, as those of `Align` do.
    limit_s: Seconds that grading one continuation may take.
  """

  k: int
  pass_rate: float
  max_cuts: int
  temperature: float
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]
  limit_s: float


@dataclasses.dataclass(frozen=True)
class Yardstick:
  """On how much the judges are measured against continuations.

  Attributes:
    traces: How many; 0 is none at all.
    cuts: Of each trace, beside the one that was chosen.
    k: Continuations of each cut, drawn as `Verify` says.
  """

  traces: int
  cuts: int
  k: int


@dataclasses.dataclass(frozen=True)
class Truncate:
  """How prefixes are cut.

  Attributes:
    search: A name in judging/search.py.
    splitter: A name in text/sentences.py.
    verdict: 'label' (probability of the label), 'generate' (a reply, parsed)
      or 'verified' (labels propose a cut, continuations prove it).
    threshold: A prefix suffices from this p_enough on.
    abstain: Half the width, in p_enough, of the band around the threshold in
      which the judge abstains.
    abstained: 'no' (an abstained verdict is not enough) or 'verify' (the
      student's continuations decide).
    rule: How search='curve' picks a cut, a name in judging/rules.py.
    stable: Sufficient cuts in a row that rule='stable' asks for.
    calibration: 'prior' subtracts the log-odds that an empty prefix gets.
    calibration_rows: Rows as a yardstick writes them, to fit on; None for none.
    calibration_fit: 'threshold' (it replaces `threshold`) or 'platt' (p_enough
      becomes the chance that a continuation passes).
    none_enough: What to do with a trace of which no prefix suffices.
    too_long: What to do with a trace that the context does not hold: 'drop' it,
      or 'fit': search what is held.  If nothing of that suffices, 'whole' keeps
      all of it, which leaves `align` little or no room to go on: such rows end
      with 'length' or 'too_long' and are rejected.
    temperature: Of a generated reply; 0 is greedy.
    top_p: Of a generated reply.
    max_tokens: Of a generated reply.
    verify: How continuations prove a cut.
    yardstick: On how much the judges are measured.
  """

  search: str
  splitter: str
  verdict: str
  threshold: float
  abstain: float
  abstained: str
  rule: str
  stable: int
  calibration: str
  calibration_rows: str | None
  calibration_fit: str
  none_enough: str
  too_long: str
  temperature: float
  top_p: float
  max_tokens: int
  verify: Verify
  yardstick: Yardstick


@dataclasses.dataclass(frozen=True)
class Align(Drawing):
  """How prefixes are continued.

  Attributes:
    mode: 'prefill' (the prefix opens the student's own turn) or 'draft' (the
      reference: it is quoted in the user's).
  """

  mode: str


@dataclasses.dataclass(frozen=True)
class Assemble:
  """What becomes training data.

  Attributes:
    keep: Of the correct completions of a question, the 'first' or 'all'.
    unverifiable: 'keep' lets rows without a checkable gold answer through.
    begin: Marker before the prefix.
    end: Marker after it.
    limit_s: Seconds that grading one answer may take.
  """

  keep: str
  unverifiable: str
  begin: str
  end: str
  limit_s: float


@dataclasses.dataclass(frozen=True)
class Sft:
  """How the student is fine-tuned.

  Attributes:
    method: 'lora' or 'full'.
    rank: Of the adapters.
    targets: The projections that get one: q, k, v, o, gate, up, down.
    quantize: 'int8' holds the frozen base of adapters in 8 bits.
    alpha: The adapters are scaled by alpha / rank.
    epochs: Times every example is seen.
    batch_size: Rows of one optimiser step, over all devices.
    max_tokens: Width of a row; longer examples are left out and counted.
    optim: See training/optim.py.
    weights: Loss weight by region: begin, prefix, end, continuation, turn_end.
    masked: Numbers of prefix sentences, from 0, that get weight 0.
    splitter: Cuts the prefix into sentences.
    remat: What of a layer the backward pass computes again, see
      models/remat.py.
    export_dtype: Of the exported weights.
  """

  method: str
  rank: int
  targets: Any
  quantize: str
  alpha: float
  epochs: int
  batch_size: int
  max_tokens: int
  optim: Mapping[str, Any]
  weights: Mapping[str, float]
  masked: Any
  splitter: str
  remat: str
  export_dtype: str


@dataclasses.dataclass(frozen=True)
class Grade:
  """How samples are graded.

  Attributes:
    limit_s: Seconds that grading one answer may take.
    resamples: Of the bootstrap.
  """

  limit_s: float
  resamples: int


@dataclasses.dataclass(frozen=True)
class Compute:
  """What bounds memory and sets cadences.

  It changes results by rounding at most; on a CPU, with matrices that are not
  tiny, by nothing.

  Attributes:
    num_rows: Rows decoded together.
    judge_tokens: Tokens that a group of devices with one copy of the rows
      judges together, padding included.
    memory_gib: Memory that judging may take on a device, weights included; 0
      finds out (the device's own; on a CPU the limit of its cgroup).
    shared_trunk: Whether a trace is read once for all its probes; False reads
      every prompt anew, to compare with.
    prefill_tokens: Prompt tokens that the sampler reads together, padding
      included: of one prompt per group of devices, hence never more than 512
      of each.
    group: Traces searched in lockstep; they are saved together.
    part_rows: Rows of a part file.
    rows_per_device: Training rows computed together on a device.
    loss_chunk: Positions of a row whose logits exist at a time; 0 for all.
    attention: Who computes attention: 'auto' (by platform), or a column of the
      table in models/kernels.py.
    workers: Processes that grade.
    log_every: Optimiser steps.
    save_every: Optimiser steps.
    save_every_s: Seconds.
    keep: Training checkpoints.
    profile_steps: The optimiser steps that are traced for XProf into
      sft/profile, as '10:12'; '' for none.
  """

  num_rows: int
  judge_tokens: int
  memory_gib: float
  shared_trunk: bool
  prefill_tokens: int
  group: int
  part_rows: int
  rows_per_device: int
  loss_chunk: int
  attention: str
  workers: int
  log_every: int
  save_every: int
  save_every_s: float
  keep: int
  profile_steps: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """A whole config, checked."""

  seed: int
  mesh: Mapping[str, int]
  student: Model
  teacher: Model
  prompts: Prompts
  teach: Teach
  truncate: Truncate
  align: Align
  assemble: Assemble
  sft: Sft
  sample: Drawing
  grade: Grade
  report: Mapping[str, Any]
  compute: Compute
  benchmarks: Mapping[str, str]


_SECTIONS = {
    'student': Model,
    'teacher': Model,
    'prompts': Prompts,
    'teach': Teach,
    'truncate': Truncate,
    'align': Align,
    'assemble': Assemble,
    'sft': Sft,
    'sample': Drawing,
    'grade': Grade,
    'compute': Compute,
}


def read(config: Mapping[str, Any]) -> Settings:
  """Returns a config as dataclasses.

  Args:
    config: Nested mappings of plain values.

  Raises:
    ConfigError: If a field is missing, unknown, or has a value it cannot have.
  """
  values = dict(config)
  for name, cls in _SECTIONS.items():
    if name not in values:
      raise errors.ConfigError(f'config.{name}: the section is missing.')
    values[name] = _section(cls, values[name], at=f'config.{name}')
  named = dict(values.get('benchmarks') or {})  # Those left open are out.
  values['benchmarks'] = {k: v for k, v in named.items() if v is not None}
  settings = config_lib.build(Settings, values, at='config')
  _check(settings)
  return settings


def _section(cls: type, values: Mapping[str, Any], *, at: str) -> Any:
  """Returns a section, and what is nested in it, as dataclasses."""
  values = _numbers(cls, dict(values))
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type) and field.name in values:
      inner, name = values[field.name], f'{at}.{field.name}'
      values[field.name] = _section(field.type, inner, at=name)
  return config_lib.build(cls, values, at=at)


def _numbers(cls: type, values: dict[str, Any]) -> dict[str, Any]:
  """Returns the values with ints where a float is due made floats."""
  floats = {f.name for f in dataclasses.fields(cls) if f.type is float}
  as_float = lambda k, v: (float(v) if k in floats and type(v) is int else v)
  return {k: as_float(k, v) for k, v in values.items()}


def _check(settings: Settings) -> None:
  for name, known in CHOICES.items():
    section, field = name.split('.')
    value = getattr(getattr(settings, section), field)
    if value not in known:
      raise errors.ConfigError(
          f'config.{name} is {value!r}; it can be {", ".join(known)}.'
      )
  for name in ('student.dtype', 'teacher.dtype', 'sft.export_dtype'):
    section, field = name.split('.')
    value = getattr(getattr(settings, section), field)
    if value not in DTYPES:
      raise errors.ConfigError(
          f'config.{name} is {value!r}; it can be {", ".join(DTYPES)}.'
      )
  for name in ('align', 'sample'):
    _check_drawing(name, getattr(settings, name))
  _check_drawing('teach', settings.teach)
  _check_truncate(settings.truncate)
  if not settings.assemble.begin or not settings.assemble.end:
    raise errors.ConfigError(
        'config.assemble: begin and end are both needed; they tell training'
        ' where the prefix lies.'
    )
  _check_positive(settings)
  for name in ('sft.epochs', 'sft.batch_size', 'sft.max_tokens', 'sft.rank'):
    value = getattr(settings.sft, name.split('.')[1])
    if value < 1:
      raise errors.ConfigError(f'config.{name} is {value}; at least 1.')
  config_lib.build(optim.OptimConfig, settings.sft.optim, at='config.sft.optim')
  profiling.parse(settings.compute.profile_steps)
  _check_adapters(settings.sft)


def _check_adapters(s: Sft) -> None:
  """Checks which projections get adapters, and what they stand on."""
  targets = [str(t) for t in s.targets]
  wrong = sorted(set(targets) - set(decoder.PROJECTIONS))
  if wrong or not targets:
    raise errors.ConfigError(
        f'config.sft.targets is {targets}, and {wrong or "an empty list"}'
        ' matches no projection of a layer; these are there:'
        f' {", ".join(decoder.PROJECTIONS)}.'
    )
  if s.quantize != 'none' and s.method != 'lora':
    raise errors.ConfigError(
        f'config.sft.quantize is {s.quantize!r}, which only a frozen base can'
        " be; set config.sft.method='lora', or quantize='none'."
    )


def _check_positive(settings: Settings) -> None:
  """Checks the counts and limits that must be above zero."""
  values = {
      f'compute.{k}': v
      for k, v in dataclasses.asdict(settings.compute).items()
      if k not in _NOT_COUNTS
  }
  values['grade.resamples'] = settings.grade.resamples
  values['grade.limit_s'] = settings.grade.limit_s
  values['assemble.limit_s'] = settings.assemble.limit_s
  values['truncate.verify.limit_s'] = settings.truncate.verify.limit_s
  values['truncate.max_tokens'] = settings.truncate.max_tokens
  for name, value in values.items():
    if value <= 0:
      raise errors.ConfigError(f'config.{name} is {value}; it must be above 0.')
  if settings.compute.memory_gib < 0:
    raise errors.ConfigError(
        f'config.compute.memory_gib is {settings.compute.memory_gib}; it must'
        ' be above 0, or 0 to be found out.'
    )


def _check_truncate(t: Truncate) -> None:
  """Checks numbers, and choices that do not go together."""
  if not 0 < t.threshold < 1 or not 0 <= t.abstain < 0.5:
    raise errors.ConfigError(
        f'config.truncate: threshold {t.threshold} must lie between 0 and 1,'
        f' abstain {t.abstain} between 0 and 0.5.'
    )
  v, y = t.verify, t.yardstick
  _check_drawing('truncate', t)
  _check_drawing('truncate.verify', v)
  at_least = {
      'stable': (t.stable, 1),
      'verify.k': (v.k, 1),
      'verify.max_cuts': (v.max_cuts, 0),
      'yardstick.traces': (y.traces, 0),
      'yardstick.cuts': (y.cuts, 1),
      'yardstick.k': (y.k, 1),
  }
  for name, (value, least) in at_least.items():
    if value < least:
      raise errors.ConfigError(
          f'config.truncate.{name} is {value}; at least {least}.'
      )
  if not 0 < v.pass_rate <= 1:
    raise errors.ConfigError(
        f'config.truncate.verify.pass_rate is {v.pass_rate}; it must be above'
        ' 0 and at most 1.'
    )
  for wrong, message in (
      (
          t.rule != 'first' and t.search != 'curve',
          f'rule is {t.rule!r}, which search={t.search!r} cannot follow; set'
          " search='curve', or rule='first'.",
      ),
      (
          t.rule == 'isotonic' and t.abstained == 'verify',
          "rule='isotonic' reads p_enough, which verifying does not change;"
          " set abstained='no', or another rule.",
      ),
      (
          t.verdict == 'generate'
          and (t.calibration != 'none' or t.abstain > 0),
          "verdict='generate' gives no p_enough to calibrate or to abstain by;"
          " set calibration='none' and abstain=0, or verdict='label'.",
      ),
      (
          t.verdict == 'generate' and t.rule == 'isotonic',
          "rule='isotonic' needs p_enough, which verdict='generate' does not"
          " give; set verdict='label', or another rule.",
      ),
      (
          t.verdict == 'generate' and t.none_enough == 'most_probable',
          "none_enough='most_probable' needs p_enough, which"
          " verdict='generate' does not give; set verdict='label', or"
          " none_enough='whole' or 'drop'.",
      ),
  ):
    if wrong:
      raise errors.ConfigError(f'config.truncate: {message}')


def _check_drawing(name: str, d: Any) -> None:
  """Checks the numbers that all sampling stages share."""
  bounds = {
      'n': getattr(d, 'n', 1) >= 1,
      'temperature': d.temperature >= 0,
      'top_k': getattr(d, 'top_k', 0) >= 0,
      'top_p': 0 < d.top_p <= 1,
      'repetition_penalty': getattr(d, 'repetition_penalty', 1) > 0,
      'max_tokens': d.max_tokens >= 1,
  }
  for field, holds in bounds.items():
    if not holds:
      raise errors.ConfigError(
          f'config.{name}.{field} is {getattr(d, field)}; n and max_tokens are'
          ' at least 1, temperature and top_k at least 0, top_p in (0, 1],'
          ' repetition_penalty above 0.'
      )
  is_text = lambda x: isinstance(x, str) and x
  stop = getattr(d, 'stop', ())
  if not isinstance(stop, (tuple, list)) or not all(map(is_text, stop)):
    raise errors.ConfigError(
        f'config.{name}.stop is {stop!r}; it must be a tuple of strings, none'
        " of them empty, such as ('Question:',), or () for none."
    )
