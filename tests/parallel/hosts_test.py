"""Processes join as the environment says, or one line tells why not."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from palign_jax.core import errors, peers
from palign_jax.parallel import hosts

ROOT = pathlib.Path(__file__).parents[2]
TWO = {
    'PALIGN_COORDINATOR': 'localhost:12345',
    'PALIGN_NUM_HOSTS': '2',
    'PALIGN_HOST': '1',
}


@pytest.fixture
def calls(monkeypatch):
  """What jax.distributed.initialize is called with; it does nothing."""
  calls = []
  monkeypatch.setattr(
      jax.distributed, 'initialize', lambda **k: calls.append(k)
  )
  return calls


def test_alone_without_variables(calls):
  hosts.join({})
  hosts.join({'PALIGN_HOSTS': '', 'PALIGN_HOST': ''})
  assert not calls


def test_as_the_variables_say(calls):
  hosts.join(TWO)
  (call,) = calls
  assert call == {
      'coordinator_address': 'localhost:12345',
      'num_processes': 2,
      'process_id': 1,
      'cluster_detection_method': 'deactivate',
  }


def test_as_the_cluster_says(calls):
  hosts.join({'PALIGN_HOSTS': 'auto'})
  assert calls == [{}]


@pytest.mark.parametrize('name', TWO)
def test_an_incomplete_set(calls, name):
  with pytest.raises(errors.ConfigError, match=f'^{name} not set; a run of'):
    hosts.join({k: v for k, v in TWO.items() if k != name})
  assert not calls


@pytest.mark.parametrize(
    'change, message',
    [
        ({'PALIGN_COORDINATOR': 'localhost'}, 'is no address; give host:port'),
        ({'PALIGN_COORDINATOR': 'localhost:x'}, 'is no address'),
        ({'PALIGN_HOST': '2'}, 'PALIGN_HOST=2 with PALIGN_NUM_HOSTS=2: hosts'),
        ({'PALIGN_HOST': '-1'}, 'counted from 0'),
        ({'PALIGN_NUM_HOSTS': 'two'}, 'counted from 0'),
        ({'PALIGN_HOSTS': 'auto'}, 'are both set; unset one'),
        ({'PALIGN_HOSTS': 'slurm'}, "PALIGN_HOSTS=slurm: it can be 'auto'"),
    ],
)
def test_wrong_values(calls, change, message):
  with pytest.raises(errors.ConfigError, match=message) as e:
    hosts.join(TWO | change)
  assert '\n' not in str(e.value)
  assert not calls


def test_no_cluster_to_be_found(monkeypatch):
  def fail(**_):
    raise ValueError('coordinator_address should be defined.\nMore.')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  message = r'no TPU pod or Slurm job .*\(coordinator_address should be def'
  with pytest.raises(errors.ConfigError, match=message) as e:
    hosts.join({'PALIGN_HOSTS': 'auto'})
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
    'environment, message',
    [
        (TWO, 'host 1 of 2 cannot meet the others at PALIGN_COORDINATOR=local'),
        ({'PALIGN_HOSTS': 'auto'}, 'auto: the other hosts cannot be met'),
    ],
)
def test_hosts_that_do_not_come_are_no_error(monkeypatch, environment, message):
  def fail(**_):
    raise RuntimeError('DEADLINE_EXCEEDED: Barrier timed out.\nMore.')

  monkeypatch.setattr(jax.distributed, 'initialize', fail)
  with pytest.raises(peers.PeerLost) as e:
    hosts.join(environment)
  assert e.value.code == 134 and message in e.value.reason
  assert e.value.reason.endswith(' (DEADLINE_EXCEEDED: Barrier timed out)')


def test_two_processes_add_up():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  processes = []
  for index in range(2):
    variables = TWO | {
        'PALIGN_COORDINATOR': f'localhost:{port}',
        'PALIGN_HOST': str(index),
    }
    processes.append(
        subprocess.Popen(
            [sys.executable, '-m', 'tests.parallel.host'],
            cwd=ROOT,
            env=os.environ | {'TF_CPP_MIN_LOG_LEVEL': '3'} | variables,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
  answers = [p.communicate(timeout=300)[0] for p in processes]
  for index, answer in enumerate(answers):
    assert json.loads(answer.splitlines()[-1]) == {
        'host': index,
        'hosts': 2,
        'devices': 4,
        'total': 6.0,
    }
