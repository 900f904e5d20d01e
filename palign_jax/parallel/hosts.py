"""How the processes of a run find each other.

PALIGN_HOSTS=auto      as the cluster says that JAX detects: TPU pods, Slurm
PALIGN_COORDINATOR     otherwise: host:port where process 0 listens,
PALIGN_NUM_HOSTS       how many processes there are,
PALIGN_HOST            and which of them this is, from 0

Without any of them a run is one process.
"""

from collections.abc import Mapping
import os

import jax

from palign_jax.core import errors, peers

AUTO = 'PALIGN_HOSTS'
COORDINATOR = 'PALIGN_COORDINATOR'
COUNT = 'PALIGN_NUM_HOSTS'
INDEX = 'PALIGN_HOST'
_EXPLICIT = (COORDINATOR, COUNT, INDEX)


def join(environment: Mapping[str, str] = os.environ) -> None:
  """Joins the other processes of the run, if the environment says so.

  Comes before whatever asks JAX for its devices.

  Args:
    environment: Where the variables above are looked up.

  Raises:
    ConfigError: If they are incomplete or wrong, or there is no such cluster.
    PeerLost: If the others do not come.  In most cases JAX notices first and
      ends the process, with the same code.
  """
  given = [name for name in _EXPLICIT if environment.get(name)]
  if mode := environment.get(AUTO):
    if mode != 'auto':
      raise errors.ConfigError(
          f"{AUTO}={mode}: it can be 'auto', or unset with"
          f' {", ".join(_EXPLICIT)} in its place.'
      )
    if given:
      raise errors.ConfigError(
          f'{AUTO}=auto and {", ".join(given)} are both set; unset one.'
      )
    _initialize(f'{AUTO}=auto: the other hosts cannot be met')
  elif given:
    address, count, index = _explicit(environment)
    _initialize(
        f'host {index} of {count} cannot meet the others at'
        f' {COORDINATOR}={address}',
        coordinator_address=address,
        num_processes=count,
        process_id=index,
        # Nothing of a cluster that this machine may belong to.
        cluster_detection_method='deactivate',
    )


def _explicit(environment: Mapping[str, str]) -> tuple[str, int, int]:
  """Returns address, number of processes and this one's index."""
  if missing := [name for name in _EXPLICIT if not environment.get(name)]:
    raise errors.ConfigError(
        f'{", ".join(missing)} not set; a run of many processes needs'
        f' {", ".join(_EXPLICIT)}, or {AUTO}=auto.'
    )
  address, count, index = (environment[name] for name in _EXPLICIT)
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal():
    raise errors.ConfigError(
        f'{COORDINATOR}={address} is no address; give host:port, as in'
        ' localhost:12345.'
    )
  if not (count.isdecimal() and index.isdecimal() and int(index) < int(count)):
    raise errors.ConfigError(
        f'{INDEX}={index} with {COUNT}={count}: hosts are counted from 0 to'
        f' {COUNT} - 1.'
    )
  return address, int(count), int(index)


def _initialize(trouble: str, **parameters) -> None:
  """Starts jax.distributed, with collectives that CPUs have too."""
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It would take SIGTERM for itself; see core/stopping.py.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(**parameters)
  except ValueError as e:
    raise errors.ConfigError(
        f'{AUTO}=auto: no TPU pod or Slurm job that JAX knows ({_line(e)}); set'
        f' {", ".join(_EXPLICIT)} in its place.'
    ) from e
  except RuntimeError as e:
    raise peers.PeerLost(f'{trouble} within 5 minutes ({_line(e)})') from e


def _line(error: Exception) -> str:
  return str(error).partition('\n')[0].rstrip('.')
