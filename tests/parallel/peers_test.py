"""What processes tell each other, over a store that is a dict here.

The last two tests have real processes, as has tests/stages/hosts_test.py.
"""

from concurrent import futures
import contextlib
import json
import signal

import jax
import pytest

from palign_jax.core import peers as peers_lib, stopping
from palign_jax.parallel import peers
from tests import processes


class Store:
  """The coordination service's."""

  def __init__(self):
    self.values, self.gone = {}, False

  def key_value_set(self, key, value):
    self._check()
    self.values[key] = value

  def _check(self):
    if self.gone:
      raise RuntimeError('UNAVAILABLE: failed to connect.\nMore.')

  def key_value_dir_get(self, start):
    self._check()
    return [(k, v) for k, v in self.values.items() if k.startswith(start)]


@pytest.fixture
def store(monkeypatch):
  """Three processes share it."""
  store = Store()
  monkeypatch.setattr(peers.distributed.global_state, 'client', store)
  monkeypatch.setattr(jax, 'process_count', lambda: 3)
  monkeypatch.setattr(jax.distributed, 'shutdown', lambda: None)
  monkeypatch.setattr(peers, '_LEAVE_S', 0.3)
  yield store
  stopping.forget()


def host(monkeypatch, index):
  monkeypatch.setattr(jax, 'process_index', lambda: index)
  return peers.Hosts()


def all_at_once(calls):
  with futures.ThreadPoolExecutor(len(calls)) as pool:
    return [call.result(30) for call in [pool.submit(call) for call in calls]]


def test_alone():
  with peers.joined() as alone:
    assert (alone.index, alone.count) == (0, 1)
    assert alone.gather({'a': 1}, at='x') == [{'a': 1}]
  assert peers_lib.share(alone, [1, 2, 3]) == [1, 2, 3]


def test_every_item_is_somebody_s(store, monkeypatch):
  team = [host(monkeypatch, i) for i in range(3)]
  shares = [peers_lib.share(one, list(range(10))) for one in team]
  assert shares == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
  assert [peers_lib.share(one, [0]) for one in team] == [[0], [], []]


def test_all_hear_all_in_turn(store, monkeypatch):
  team = [host(monkeypatch, i) for i in range(3)]

  def talk(one):
    return [one.gather([one.index, turn], at='x') for turn in range(4)]

  said = all_at_once([lambda one=one: talk(one) for one in team])
  assert said == [[[[i, turn] for i in range(3)] for turn in range(4)]] * 3


def test_hosts_at_different_places_are_told(store, monkeypatch):
  team = [host(monkeypatch, i) for i in range(3)]
  store.values['palign/1/1'] = json.dumps(['there', None])
  store.values['palign/1/2'] = json.dumps(['here', None])
  with pytest.raises(peers_lib.PeerError, match="host 1 is at 'there' and th"):
    team[0].gather(None, at='here')


def test_who_waits_hears_that_another_has_failed(store, monkeypatch):
  one, two, _ = (host(monkeypatch, i) for i in range(3))
  two.leave(1, 'traces.jsonl: no such file.')
  message = 'host 1 has ended with 1: traces.jsonl: no such file'
  with pytest.raises(peers_lib.PeerError, match=message):
    one.gather(None, at='here')


def test_who_waits_hears_that_another_is_to_end(store, monkeypatch):
  one, two, _ = (host(monkeypatch, i) for i in range(3))
  two.leave(stopping.EXIT_CODE, 'told to end')
  for held in (contextlib.nullcontext(), stopping.later()):
    with held, pytest.raises(stopping.Stopped):
      one._looked_at = 0.0
      one.gather(None, at='here')
  assert stopping.asked()


def test_one_that_has_finished_disturbs_nobody(store, monkeypatch):
  one, two, _ = (host(monkeypatch, i) for i in range(3))
  two.leave(0, 'finished')
  one.check()


def waits(one):
  one.gather(None, at='here')


@pytest.mark.parametrize('does', [peers.Hosts.check, waits])
def test_host_0_is_gone(store, monkeypatch, does):
  one = host(monkeypatch, 1)
  store.gone = True
  with pytest.raises(peers_lib.PeerLost) as e:
    does(one)
  assert e.value.code == 134  # Nobody has said that it failed.
  assert e.value.reason == (
      'host 0 does not answer (UNAVAILABLE: failed to connect.)'
  )
  one.leave(1, 'x')  # Does not wait for it either.


def test_who_has_lost_another_is_no_error_either(store, monkeypatch):
  one, two, _ = (host(monkeypatch, i) for i in range(3))
  two.leave(134, 'host 0 does not answer')
  with pytest.raises(peers_lib.PeerLost) as e:
    one.gather(None, at='here')
  assert e.value.code == 134


@pytest.mark.parametrize(
    'raised, code, reason',
    [
        (None, 0, 'finished'),
        (stopping.Stopped(), 75, 'told to end'),
        (OSError('full'), 1, 'full'),
        (peers_lib.PeerLost('host 0 is gone'), 134, 'host 0 is gone'),
    ],
)
def test_however_one_leaves_the_others_hear(
    store, monkeypatch, raised, code, reason
):
  monkeypatch.setattr(jax, 'process_index', lambda: 2)
  try:
    with peers.joined():
      if raised:
        raise raised
  except (SystemExit, OSError) as e:
    assert e is raised
  assert json.loads(store.values['palign/end/2']) == [code, reason]


def test_an_error_is_told_though_others_are_busy():
  busy, failing = processes.start(2, 'tests.parallel.leaver', 'fails')
  try:
    output, _ = failing.communicate(timeout=60)  # JAX alone: 5 minutes, 134.
  finally:
    busy.kill()
    busy.communicate()
  assert failing.returncode == 1
  assert 'Error: a.jsonl: broken.' in output


def test_who_has_lost_process_0_has_not_failed():
  started = processes.start(2, 'tests.parallel.leaver', 'killed')
  codes = [code for code, _ in processes.finish(started)]
  assert codes[0] == -signal.SIGKILL
  # JAX is quicker than we are: by SIGABRT, which shells call 134.
  assert codes[1] in (-signal.SIGABRT, peers_lib.LOST)
