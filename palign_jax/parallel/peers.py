"""The processes of a run, by the coordination service of jax.distributed.

Its store of keys and values takes no part in what devices do: processes may
come hours apart (a collective would time out), one that waits can be stopped,
and no device waits with it.
"""

import atexit
from collections.abc import Iterator
import contextlib
import json
import os
import sys
import time
from typing import Any

from absl import logging
import jax

# JAX shows barriers between devices only; Orbax looks here too.
from jax._src import distributed

from palign_jax.core import peers as peers_lib, stopping

_LONGEST_PAUSE_S = 1.0
_LEAVE_S = 20.0  # How long who leaves waits for the others to have seen it.


@contextlib.contextmanager
def joined() -> Iterator[peers_lib.Peers]:
  """Yields the processes that `hosts.join` has joined.

  However this one leaves, the others hear of it.
  """
  peers = Hosts() if jax.process_count() > 1 else peers_lib.Alone()
  try:
    yield peers
  except stopping.Stopped:
    logging.warning(
        'Told to end: what was done is saved; the same command goes on (exit'
        ' code %d).',
        stopping.EXIT_CODE,
    )
    peers.leave(stopping.EXIT_CODE, 'told to end')
    raise
  except peers_lib.PeerLost as e:
    peers.leave(peers_lib.LOST, e.reason)
    raise
  except BaseException as e:
    peers.leave(1, str(e).partition('\n')[0] or type(e).__name__)
    raise
  peers.leave(0, 'finished')


class Hosts:
  """This process and the others."""

  def __init__(self):
    self.index, self.count = jax.process_index(), jax.process_count()
    self._client = distributed.global_state.client
    self._turn = 0
    self._looked_at = 0.0

  def gather(self, value: Any, at: str) -> list[Any]:
    """Returns the value of every process, once all have come here."""
    self._turn += 1
    place = f'palign/{self._turn}/'
    said = json.dumps([at, value])
    self._ask('key_value_set', f'{place}{self.index}', said)
    said = [json.loads(text) for text in self._wait(place)]
    for host, (where, _) in enumerate(said):
      if where != at:
        raise peers_lib.PeerError(
            f'host {host} is at {where!r} and this one at {at!r}; start every'
            ' process with the same flags, and let all see one workdir.'
        )
    return [value for _, value in said]

  def _wait(self, place: str) -> list[str]:
    pause_s = 0.01
    while True:
      # Keys end with the process's number.
      found = {
          int(key.rpartition('/')[2]): text for key, text in self._look(place)
      }
      if len(found) == self.count:
        return [found[i] for i in range(self.count)]
      self.check()
      time.sleep(pause_s)
      pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

  def _look(self, place: str) -> list[tuple[str, str]]:
    return self._ask('key_value_dir_get', place)

  def _ask(self, call: str, *args: str) -> Any:
    """Asks the store, which process 0 keeps.

    Raises:
      PeerLost: If it does not answer.
    """
    try:
      return getattr(self._client, call)(*args)
    except RuntimeError as e:
      reason = str(e).partition('\n')[0]
      raise peers_lib.PeerLost(f'host 0 does not answer ({reason})') from e

  def check(self) -> None:
    """Raises if this process or another was told to end, or has failed."""
    stopping.check()
    now = time.monotonic()
    if now - self._looked_at < _LONGEST_PAUSE_S:
      return
    self._looked_at = now
    for key, text in self._look('palign/end/'):
      code, reason = json.loads(text)
      if code == stopping.EXIT_CODE:
        stopping.ask()
        # Also where it is held: nobody can gather with who has left.
        raise stopping.Stopped
      elif code and not key.endswith(f'/{self.index}'):
        host = key.rpartition('/')[2]
        lost = code == peers_lib.LOST
        error = peers_lib.PeerLost if lost else peers_lib.PeerError
        raise error(f'host {host} has ended with {code}: {reason}')

  def leave(self, code: int, reason: str) -> None:
    """Tells the others, and waits until they leave too, but not for long."""
    try:
      self._client.key_value_set(
          f'palign/end/{self.index}', json.dumps([code, reason])
      )
      until = time.monotonic() + _LEAVE_S
      while time.monotonic() < until:
        if len(self._client.key_value_dir_get('palign/end/')) == self.count:
          break
        time.sleep(0.1)
      else:
        logging.warning('Not all hosts have ended; leaving without them.')
        if code not in (0, stopping.EXIT_CODE):
          # At exit JAX would wait 5 minutes for them, and then end with 134.
          atexit.register(_exit, code)  # Comes before what JAX has registered.
        return
      jax.distributed.shutdown()
    except RuntimeError as e:
      logging.warning('Host 0 is gone already (%s).', str(e).split('\n')[0])


def _exit(code: int) -> None:
  """Ends the process here and now."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
