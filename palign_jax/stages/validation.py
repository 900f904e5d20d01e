"""Reads a config into settings, or says in one line what is wrong with it."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from palign_jax.core import config as config_lib, errors
from palign_jax.judging import rules
from palign_jax.models import decoder, kernels, remat
from palign_jax.stages import settings as settings_lib
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


_SECTIONS = {
    'student': settings_lib.Model,
    'teacher': settings_lib.Model,
    'prompts': settings_lib.Prompts,
    'teach': settings_lib.Teach,
    'truncate': settings_lib.Truncate,
    'align': settings_lib.Align,
    'assemble': settings_lib.Assemble,
    'sft': settings_lib.Sft,
    'sample': settings_lib.Drawing,
    'grade': settings_lib.Grade,
    'compute': settings_lib.Compute,
}


def read(config: Mapping[str, Any]) -> settings_lib.Settings:
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
  settings = config_lib.build(settings_lib.Settings, values, at='config')
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


def _check(settings: settings_lib.Settings) -> None:
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
  _check_optim(settings.sft)
  profiling.parse(settings.compute.profile_steps)
  _check_adapters(settings.sft)


def _check_optim(s: settings_lib.Sft) -> None:
  """Checks the numbers that would train in silence to nothing."""
  o = config_lib.build(optim.OptimConfig, s.optim, at='config.sft.optim')
  for name, holds, bound in (
      ('peak_lr', o.peak_lr > 0, 'above 0'),
      ('clip_norm', o.clip_norm > 0, 'above 0; a large one clips nothing'),
      ('eps', o.eps > 0, 'above 0'),
      ('warmup_frac', 0 <= o.warmup_frac <= 1, 'from 0 to 1'),
      ('final_lr_frac', 0 <= o.final_lr_frac <= 1, 'from 0 to 1'),
      ('weight_decay', o.weight_decay >= 0, 'at least 0'),
      ('b1', 0 <= o.b1 < 1, 'from 0 to below 1'),
      ('b2', 0 <= o.b2 < 1, 'from 0 to below 1'),
      ('muon_beta', 0 <= o.muon_beta < 1, 'from 0 to below 1'),
  ):
    if not holds:
      raise errors.ConfigError(
          f'config.sft.optim.{name} is {getattr(o, name)}; it must be {bound}.'
      )


def _check_adapters(s: settings_lib.Sft) -> None:
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


def _check_positive(settings: settings_lib.Settings) -> None:
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
  for name, zero in (
      ('memory_gib', 'to be found out'),
      ('loss_chunk', 'for all'),
  ):
    if (value := getattr(settings.compute, name)) < 0:
      raise errors.ConfigError(
          f'config.compute.{name} is {value}; it must be above 0, or 0 {zero}.'
      )


def _check_truncate(t: settings_lib.Truncate) -> None:
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
          t.calibration_fit != 'threshold' and not t.calibration_rows,
          f'calibration_fit is {t.calibration_fit!r} and there are no rows to'
          " fit on; set calibration_rows, or calibration_fit='threshold'.",
      ),
      (
          t.abstained == 'verify' and not t.abstain,
          "abstained='verify' and abstain=0, so that nothing abstains; set"
          " abstain above 0, or abstained='no'.",
      ),
      (
          t.verdict == 'generate'
          and (
              t.calibration != 'none'
              or t.calibration_rows is not None
              or t.abstain > 0
          ),
          "verdict='generate' gives no p_enough to calibrate or to abstain by;"
          " set calibration='none', calibration_rows=None and abstain=0, or"
          " verdict='label'.",
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
