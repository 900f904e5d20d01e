"""Training is the same on any mesh, and on any number of hosts.

The first 20 losses, float32, packed rows, gradients clipped and accumulated,
AdamW with the eps of the configs.
"""

import functools
import json
import math
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from palign_jax.parallel import mesh as mesh_lib
from tests.training import trajectory

ROOT = pathlib.Path(__file__).parents[2]
FULL = (
    {'fsdp': 2},
    {'tensor': 2, 'sequence': 2},
    {'data': 2, 'fsdp': 2, 'tensor': 2},
)
LORA = (
    {'sequence': 2},
    {'data': 2, 'fsdp': 2},
    {'data': 2, 'tensor': 2, 'sequence': 2},
)
CASES = [('full', m) for m in FULL] + [('lora', m) for m in LORA]


@functools.cache
def alone(method):
  losses = trajectory.losses(method, mesh_lib.alone())
  assert losses[-1] < losses[0] - 0.05  # It learns.
  return losses


@pytest.mark.parametrize('method, sizes', CASES, ids=str)
def test_sharded_equals_unsharded(method, sizes):
  devices = jax.devices()[: math.prod(sizes.values())]
  got = trajectory.losses(method, mesh_lib.make(sizes, devices))
  np.testing.assert_allclose(got, alone(method), rtol=1e-5)


def test_two_hosts_of_four_devices():
  sizes = {'data': 2, 'fsdp': 2, 'sequence': 2, 'dcn_data': 2}
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  common = os.environ | {
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'PALIGN_COORDINATOR': f'localhost:{port}',
      'PALIGN_NUM_HOSTS': '2',
  }
  program = [sys.executable, '-m', 'tests.training.trajectory']
  processes = [
      subprocess.Popen(
          [*program, json.dumps(sizes)],
          cwd=ROOT,
          env=common | {'PALIGN_HOST': str(index)},
          stdout=subprocess.PIPE,
          text=True,
      )
      for index in range(2)
  ]
  answers = [p.communicate(timeout=600)[0] for p in processes]
  for answer in answers:
    got = json.loads(answer.splitlines()[-1])
    for method in trajectory.METHODS:
      np.testing.assert_allclose(got[method], alone(method), rtol=1e-5)
