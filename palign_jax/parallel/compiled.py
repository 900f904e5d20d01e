"""Compiled programs are kept on disk, so that the next run need not wait.

They lie in $XDG_CACHE_HOME/palign_jax/xla, or ~/.cache/palign_jax/xla.  Who has
set JAX_COMPILATION_CACHE_DIR, or `jax_enable_compilation_cache` to false, is
left in peace.
"""

import os
import pathlib

from absl import logging
import jax

_MAX_BYTES = 4 * 2**30  # Those used longest ago go first.


def keep() -> None:
  """Turns the cache on; to be called before anything is compiled."""
  config = jax.config
  if (
      config.jax_compilation_cache_dir
      or not config.jax_enable_compilation_cache
  ):
    return
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  folder = pathlib.Path(home).expanduser() / 'palign_jax' / 'xla'
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:  # A home that cannot be written to is no reason to stop.
    logging.warning('Compiled programs are not kept: %s.', e)
    return
  config.update('jax_compilation_cache_dir', str(folder))
  config.update('jax_compilation_cache_max_size', _MAX_BYTES)
  # Small programs too: a small model has many, of half a second each.
  config.update('jax_persistent_cache_min_compile_time_secs', 0.1)
  config.update('jax_persistent_cache_min_entry_size_bytes', -1)
