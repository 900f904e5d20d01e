"""One of the processes of peers_test, which end in the way they are told.

  python -m tests.parallel.leaver WAY

fails    host 1 meets an error, while host 0 is busy
killed   host 0 is killed, while host 1 waits for it
"""

import os
import signal
import sys
import time

from palign_jax.core import command, errors
from palign_jax.parallel import hosts, peers


def main(way: str) -> None:
  peers._LEAVE_S = 0.5
  with command.one_line_errors():
    hosts.join()
    with peers.joined() as team:
      team.gather(None, at='start')
      print('met', flush=True)
      if way == 'fails' and team.index:
        raise errors.DataError('a.jsonl: broken.')
      elif way == 'fails':
        time.sleep(300)
      elif not team.index:
        os.kill(os.getpid(), signal.SIGKILL)
      team.gather(None, at='end')


if __name__ == '__main__':
  main(sys.argv[1])
