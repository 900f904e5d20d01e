"""Numbers are written the same way everywhere."""

import pytest

from palign_jax.report import numbers


@pytest.mark.parametrize(
    'got, want',
    [
        (numbers.percent(0.41234), '41.2%'),
        (numbers.percent(0.0), '0.0%'),
        (numbers.percent(None), '—'),
        (numbers.percent_range(0.381, 0.443), '38.1–44.3%'),
        (numbers.percent_range(None, 0.4), '—'),
        (numbers.points(0.114), '+11.4'),
        (numbers.points(-0.114), '−11.4'),
        (numbers.points(-0.0001), '0.0'),
        (numbers.points_range(-0.012, 0.034), '−1.2 to +3.4'),
        (numbers.count(12345), '12,345'),
        (numbers.counted(1, 'row'), '1 row'),
        (numbers.counted(2000, 'row'), '2,000 rows'),
    ],
)
def test_writes(got, want):
  assert got == want


@pytest.mark.parametrize(
    'seconds, want',
    [
        (0.123, '0.12 s'),
        (59.94, '59.9 s'),
        (59.96, '1 min 00 s'),
        (3599.6, '1 h 00 min'),
        (7620, '2 h 07 min'),
        (3 * 86400 + 4 * 3600, '3 d 4 h'),
        (None, '—'),
    ],
)
def test_durations(seconds, want):
  assert numbers.duration(seconds) == want


@pytest.mark.parametrize(
    'value, want',
    [
        (True, 'yes'),
        (32768, '32,768'),
        (5e-5, '5e−05'),
        (1.05, '1.05'),
        (-1.0, '−1'),
        (['cpu', 'cpu', 'gpu'], '2 × cpu, gpu'),
        ({'jax': '0.9', 'n': 2}, 'jax 0.9, n 2'),
        ('', '—'),
        (None, '—'),
    ],
)
def test_any_value(value, want):
  assert numbers.plain(value) == want


@pytest.mark.parametrize(
    'value', [None, True, '3', [], float('nan'), float('inf'), 10**400]
)
def test_what_is_no_number_is_none(value):
  assert numbers.number(value) is None
