"""Commands, files and links that README and WORKSPACE name are there."""

import importlib.util
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ('README.md', 'WORKSPACE.md')


def found(pattern):
  texts = [(ROOT / doc).read_text() for doc in DOCS]
  return sorted({m for text in texts for m in re.findall(pattern, text)})


@pytest.mark.parametrize(
    'module', found(r'python -m ((?:palign_jax|bench)[\w.]*)')
)
def test_modules(module):
  assert importlib.util.find_spec(module), module


@pytest.mark.parametrize(
    'file',
    found(
        r'\b((?:launch|configs|benchmarks|tests|palign_jax)/[\w./]+\.(?:py|sh|json))'
    ),
)
def test_files(file):
  assert (ROOT / file).is_file(), file


@pytest.mark.parametrize('file', found(r'\b(requirements[\w-]*\.txt)'))
def test_requirements(file):
  assert (ROOT / file).is_file(), file


def test_packages_in_the_tree_exist():
  for name in found(r'\n      (\w+)/ {2,}'):
    assert (ROOT / 'palign_jax' / name / '__init__.py').is_file(), name
