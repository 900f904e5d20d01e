"""The checkpoints of `families.py`, each made once."""

import functools

import pytest

from tests.checkpoints import families


@pytest.fixture(scope='session')
def cases(tmp_path_factory):
  """Returns a function from a family's name to its Case."""
  return functools.cache(
      lambda name: families.make(name, tmp_path_factory.mktemp(name))
  )
