"""Compiled programs go to the user's cache folder, unless told otherwise."""

import os
import pathlib
import subprocess
import sys

_CODE = """
from palign_jax.parallel import compiled
compiled.keep()
import jax
jax.jit(lambda x: (x @ x.T).sum() * 3)(jax.numpy.ones((64, 64)))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.jit(lambda x: (x @ x.T).sum() * 4)(jax.numpy.ones((64, 64)))
print(jax.config.jax_compilation_cache_dir)
"""


def run(**environ):
  left_out = ('XDG_CACHE_HOME', 'JAX_COMPILATION_CACHE_DIR')
  base = {k: v for k, v in os.environ.items() if k not in left_out}
  return subprocess.run(
      [sys.executable, '-c', _CODE],
      env={**base, 'JAX_PLATFORMS': 'cpu', **environ},
      cwd=pathlib.Path(__file__).parents[2],
      capture_output=True,
      text=True,
      check=True,
  ).stdout.split()[-1]


def test_in_the_users_folder(tmp_path):
  folder = pathlib.Path(run(XDG_CACHE_HOME=str(tmp_path)))
  assert folder == tmp_path / 'palign_jax' / 'xla'
  assert list(folder.iterdir())


def test_a_folder_of_the_users_choice_stays(tmp_path):
  own = str(tmp_path / 'own')
  assert run(JAX_COMPILATION_CACHE_DIR=own) == own
