"""What entry points share: wrong flags and errors, each told in one line."""

from collections.abc import Iterator, Sequence
import contextlib
import logging as python_logging
import pathlib
import sys

from absl import flags, logging

from palign_jax.core import errors, peers


def parse(argv: Sequence[str]) -> list[str]:
  """Parses flags and loads the config file: a `flags_parser` of `app.run`.

  Returns:
    The arguments that are no flags, the program's name first.

  Raises:
    SystemExit: With one line, if a flag or the config file is wrong.
  """
  try:
    rest = flags.FLAGS(list(argv))
    if 'config' in flags.FLAGS:
      # What stands in for one that did not load says so when looked into.
      getattr(flags.FLAGS['config'].value, 'to_dict', None)
    return rest
  except AttributeError as e:  # How ml_collections meets an unknown field.
    # Perhaps with a second line, 'Did you mean "search" ...', all in a repr.
    lines = str(e).replace('\\n', '\n').replace("\\'", "'").splitlines()
    name, *hint = [line.strip('"\'') for line in lines]
    wrong = [arg for arg in argv if arg.startswith('--config.') and name in arg]
    if not wrong:
      raise
    sys.exit(
        f'Error: {wrong[0]}: the config has no field {name!r}; the config file'
        f' and configs/common.py list the fields. {" ".join(hint)}'.rstrip()
    )
  except Exception as e:  # A config file is a program: it may raise anything.
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    sys.exit(f'Error: {lines[-1] if lines else type(e).__name__}')


def quiet_libraries() -> None:
  """Lets only warnings through from other packages that log with absl."""
  own = str(pathlib.Path(__file__).parents[1])

  def wanted(record: python_logging.LogRecord) -> bool:
    warns = record.levelno >= python_logging.WARNING
    return warns or record.pathname.startswith(own)

  logging.get_absl_handler().addFilter(wanted)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
  """Turns what a user can mend into one line on stderr and exit status 1.

  Where a process of several is lost, all that can be done is told as well.
  """
  try:
    yield
  except peers.PeerLost as e:
    print(
        f'Error: {e.reason}; finished work is kept, start all processes again.',
        file=sys.stderr,
    )
    raise
  except errors.PalignError as e:
    sys.exit(f'Error: {e}')
  except OSError as e:  # A full disk, a folder that vanished.
    sys.exit(
        f'Error: {e.filename or "a file"}: {e.strerror or e}; mend this and'
        ' run the same command again, finished work is kept.'
    )
