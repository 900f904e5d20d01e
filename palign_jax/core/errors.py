"""What goes wrong in a way a user can mend.

Each message is one line: where, what came, what would do.  `main` prints it
without a traceback and exits with 1.
"""


class PalignError(Exception):
  """Base of every error that a user can mend."""


class ConfigError(PalignError):
  """A config field, flag or workdir that cannot be used as it is."""


class DataError(PalignError):
  """An input file or record that is missing, broken or incomplete."""


class CheckpointError(PalignError):
  """A model folder or training checkpoint that does not fit."""


def line(error: PalignError | OSError) -> str:
  """Returns what to tell of it, also of a file that the system refuses."""
  if isinstance(error, OSError):
    return f'{error.filename or "a file"}: {error.strerror or error}.'
  return str(error)
