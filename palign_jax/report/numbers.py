"""How the report writes numbers: few digits, always the same way."""

import math
from typing import Any

MINUS = '\N{MINUS SIGN}'
DASH = '\N{EN DASH}'
NONE = '\N{EM DASH}'  # Stands where there is no number.


def number(value: Any) -> float | None:
  """Returns a finite float, or None for anything else a file may hold."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value) if math.isfinite(value) else None
  except OverflowError:  # An integer beyond every float.
    return None


def percent(share: float | None) -> str:
  """Writes 0.4123 as 41.2%."""
  return NONE if share is None else f'{100 * share:.1f}%'


def percent_range(low: float | None, high: float | None) -> str:
  """Writes 0.381, 0.443 as 38.1–44.3%."""
  if low is None or high is None:
    return NONE
  return f'{100 * low:.1f}{DASH}{100 * high:.1f}%'


def points(share: float | None) -> str:
  """Writes a difference of two shares in percentage points, with its sign."""
  if share is None:
    return NONE
  text = f'{100 * share:+.1f}'
  return text.lstrip('+-') if float(text) == 0 else text.replace('-', MINUS)


def points_range(low: float | None, high: float | None) -> str:
  """Writes -0.012, 0.034 as −1.2 to +3.4."""
  if low is None or high is None:
    return NONE
  return f'{points(low)} to {points(high)}'


def count(value: int | float | None) -> str:
  """Writes 12345 as 12,345."""
  return NONE if value is None else f'{value:,.0f}'


def counted(value: int, noun: str) -> str:
  """Writes 1 row, 2 rows, 1,000 rows."""
  return f'{value:,} {noun}' + ('' if value == 1 else 's')


def duration(seconds: int | float | None) -> str:
  """Writes seconds so that two units at most are left."""
  if seconds is None:
    return NONE
  if seconds < 59.95:
    return f'{seconds:.1f} s' if seconds >= 1 else f'{seconds:.2f} s'
  whole = round(seconds)
  if whole < 3600:
    return f'{whole // 60} min {whole % 60:02d} s'
  minutes = whole // 60
  if minutes < 48 * 60:
    return f'{minutes // 60} h {minutes % 60:02d} min'
  hours = minutes // 60
  return f'{hours // 24} d {hours % 24} h'


def plain(value: Any) -> str:
  """Writes any JSON value: numbers briefly, containers on one line."""
  if value is None or value == '':
    return NONE
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, int):
    return f'{value:,}'.replace('-', MINUS)
  if isinstance(value, float):
    whole = value.is_integer() and abs(value) < 1e6
    whole = whole or 1e3 <= abs(value) < 1e15
    return (f'{value:,.0f}' if whole else f'{value:.4g}').replace('-', MINUS)
  if isinstance(value, dict):
    return ', '.join(f'{key} {plain(item)}' for key, item in value.items())
  if isinstance(value, list | tuple):
    texts = [plain(item) for item in value]
    names = dict.fromkeys(texts)
    times = (
        lambda name: f'{texts.count(name)} × ' if texts.count(name) > 1 else ''
    )
    return ', '.join(times(name) + name for name in names)
  return str(value)
