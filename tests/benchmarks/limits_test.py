"""Shares of what a device can do are of what it was asked for."""

import pytest

from benchmarks import limits


@pytest.fixture(scope='module')
def rows():
  flags = '--shape=tiny --tokens=64 --batch=2 --rows=8 --context=100 --steps=64'
  small = '--repetitions=2 --product=64 --pass_bytes=65536'
  return limits.run(limits.parse([*flags.split(), *small.split()]))


def test_both_cases_have_a_row(rows):
  assert [row['case'] for row in rows] == ['prefill', 'decode']
  assert [row['tokens'] for row in rows] == [2 * 64, 8 * 64]


def test_the_share_is_that_of_the_limit(rows):
  read, drawn = rows
  # 2 layers of 64 x 4 x 64 heads and 3 x 64 x 64, pairs of 64 channels.
  heads = 64 * (2 * 64 + 2 * 32)
  layer = heads + 3 * 64 * 64
  work = 2 * 128 * 2 * layer + 128 * 2 * 4 * 64 * 32 + 2 * 2 * 64 * 1024
  share = work / read['seconds'] / read['product_flops']
  assert read['of_limit'] == pytest.approx(share, rel=0.05)
  seen = 8 * (100 + 16 + 64 / 2)
  moved = 4 * (2 * layer + 64 * 1024) + seen * 2 * 4 * 2 * 32
  share = 64 * moved / drawn['memory_bytes_per_s'] / drawn['seconds']
  assert abs(drawn['of_limit']) == pytest.approx(abs(share), rel=0.2)
