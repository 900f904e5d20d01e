"""Imports point down: a package knows only packages on lower floors."""

import ast
import pathlib

import pytest

import palign_jax

# From the ground up.  Packages that share a floor do not know each other.
FLOORS = (
    {'core'},
    {'text', 'grading', 'parallel', 'data', 'sandbox', 'report'},
    {'models'},
    {'checkpoints', 'sampling'},
    {'judging'},
    {'training'},
    {'stages'},
    {'planning'},
    {'main', 'ask', 'grade', 'plan', 'make_sandbox'},
)
# Third-party packages that only some files may import, wherever in the file.
OWNERS = {
    'jax': (
        *('parallel/', 'models/', 'checkpoints/', 'sampling/', 'judging/'),
        *('training/', 'stages/', 'planning/', 'main.py', 'ask.py', 'plan.py'),
        'make_sandbox.py',
    ),
    'flax': ('models/', 'checkpoints/'),
    'optax': ('training/',),
    'grain': ('training/data.py',),
    'tensorboardX': ('training/metrics.py',),
    'orbax': ('checkpoints/store.py',),
    'safetensors': ('checkpoints/',),
    'huggingface_hub': ('checkpoints/folders.py',),
    'transformers': ('text/tokenizer.py',),
    'tokenizers': ('text/tokenizer.py', 'sandbox/tokenizer.py'),
    'math_verify': ('grading/verify.py',),
    'matplotlib': ('report/plots.py',),
    'tensorflow_datasets': ('data/sources.py',),
    'pyarrow': ('data/sources.py',),
    'ml_collections': ('main.py', 'plan.py', 'make_sandbox.py'),
    # Tests and benchmarks may compare with them.
    'torch': (),
    'peft': (),
    'tensorflow': (),
    'datasets': (),
    # Programs import configs, not the other way round.
    'configs': (),
}
GRADE_IMPORTS = {'core', 'data', 'grading'}

ROOT = pathlib.Path(palign_jax.__file__).parent
FILES = sorted(p.relative_to(ROOT) for p in ROOT.rglob('*.py'))


def imports(file: pathlib.Path) -> set[str]:
  """Returns the full name of everything that `file` imports."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / file).read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{file}: write the full name, not a relative one'
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
  return names


def floor(package: str) -> int:
  (number,) = (i for i, floor in enumerate(FLOORS) if package in floor)
  return number


@pytest.mark.parametrize('file', FILES, ids=str)
def test_imports_point_down(file):
  package = file.parts[0].removesuffix('.py')
  if file.name == '__init__.py':
    assert not (ROOT / file).read_text(), f'{file} holds code'
    return
  for name in imports(file):
    top, *rest = name.split('.')
    if top == 'palign_jax' and rest[0] != package:
      assert floor(rest[0]) < floor(package), f'{file} imports {name}'
    elif top in OWNERS:
      assert str(file).startswith(OWNERS[top]), f'{file} imports {name}'


def test_grading_alone_needs_little():
  names = imports(pathlib.Path('grade.py'))
  ours = {n.split('.')[1] for n in names if n.startswith('palign_jax.')}
  assert ours <= GRADE_IMPORTS


def test_every_floor_has_its_packages():
  there = {file.parts[0].removesuffix('.py') for file in FILES} - {'__init__'}
  assert there <= set().union(*FLOORS)
