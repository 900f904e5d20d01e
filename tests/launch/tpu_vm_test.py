"""launch/tpu_vm.sh against a cloud of scripts that fails at every call."""

import shutil
import subprocess
import time

import pytest

PLACE = ['--name=p', '--zone=z', '--project=q']
FLAGS = [
    *PLACE,
    *('--accelerator=v5p-128', '--spot', '--poll=0'),
    *('--config=configs/quickstart.py:a', '--workdir=gs://b/r 1'),
    "--config.sft.optimizer=it's",
]
WORKERS = ('worker0', 'worker1')


def tpu_vm(cloud, verb, *flags, **variables):
  return cloud.run('launch/tpu_vm.sh', verb, *(flags or FLAGS), **variables)


def ok(done):
  assert done.returncode == 0, done.stderr
  return done


def refused(done, message):
  assert done.returncode == 1
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('Error: ')]
  assert message in line
  return line


def running(cloud):
  """Checks that main runs on all workers as the flags say."""
  for worker in WORKERS:
    home = cloud.folder / worker
    assert (home / 'active').exists()
    script = (home / 'palign/run.sh').read_text()
    assert "--workdir=gs://b/r\\ 1 --config.sft.optimizer=it\\'s" in script
    assert (home / 'palign/code/palign_jax/main.py').exists()
    assert 'requirements-tpu.txt' in (home / 'pip').read_text()
  unit = (cloud.folder / 'units/palign.service').read_text()
  assert 'ExecStart=/bin/bash' in unit


def test_from_nothing_to_the_end(cloud):
  assert ok(tpu_vm(cloud, 'status')).stdout == 'p: none\n'
  for verb in ('create', 'setup', 'run'):
    ok(tpu_vm(cloud, verb))
  running(cloud)
  (create,) = [call for call in cloud.calls if ' create ' in call]
  assert '--accelerator-type=v5p-128' in create
  assert '--runtime-version=v2-alpha-tpuv5 ' in create
  assert '--spot' in create
  lines = ok(tpu_vm(cloud, 'status')).stdout.splitlines()
  assert lines[0] == 'p: ready'
  assert [line.split(': ')[1] for line in lines[1:]] == ['running', 'running']
  ok(tpu_vm(cloud, 'stop'))
  assert 'not running' in ok(tpu_vm(cloud, 'status')).stdout
  ok(tpu_vm(cloud, 'delete'))
  assert ok(tpu_vm(cloud, 'status')).stdout == 'p: none\n'


def test_every_step_may_be_repeated(cloud):
  for verb in ('create', 'setup', 'run', 'stop', 'run', 'delete'):
    ok(tpu_vm(cloud, verb))
    ok(tpu_vm(cloud, verb))
  assert (cloud.folder / 'history').read_text() == 'created\n'


def test_a_second_setup_installs_nothing_and_leaves_the_run_alone(cloud):
  for verb in ('create', 'setup', 'run'):
    ok(tpu_vm(cloud, verb))
  pip = (cloud.folder / 'worker1/pip').read_text()
  ok(tpu_vm(cloud, 'setup'))
  assert (cloud.folder / 'worker1/pip').read_text() == pip
  running(cloud)


def test_another_run_beside_one_that_goes_on(cloud):
  for verb in ('create', 'setup', 'run'):
    ok(tpu_vm(cloud, verb))
  refused(
      tpu_vm(cloud, 'run', *FLAGS, '--stages=sft'),
      "step 'run' failed with exit code 1",
  )


# What `restart` does from nothing, by call of gcloud.
STEPS = (
    *('look', 'look', 'create', *['look'] * 6),
    *('look', 'look', 'copy', 'unpack', 'install'),
    *('look', 'look', 'stop', 'look', 'look', 'run'),
)


# Late: the cloud has done it, and the answer was lost.
FAILURES = [
    (number, when)
    for number, step in enumerate(STEPS, 1)
    for when in (['early'] if step == 'look' else ['early', 'late'])
]


def test_the_steps_are_these(cloud):
  ok(tpu_vm(cloud, 'restart'))
  assert len(cloud.calls) == len(STEPS)
  for step, call in zip(STEPS, cloud.calls, strict=True):
    verb = {'look': 'describe', 'copy': 'scp', 'create': 'create'}
    assert f' {verb.get(step, "ssh")} ' in call


@pytest.mark.parametrize('number, when', FAILURES)
def test_a_failure_at_every_call(cloud, number, when):
  done = tpu_vm(cloud, 'restart', FAIL_CALL=str(number), FAIL=when)
  line = refused(done, f"step '{STEPS[number - 1]}' failed with exit code 1")
  assert f'call {number} failed on purpose' in line
  assert len(cloud.calls) == number
  cloud.forget_calls()
  ok(tpu_vm(cloud, 'restart'))
  running(cloud)
  assert (cloud.folder / 'history').read_text() == 'created\n'


@pytest.mark.parametrize(
    'number, when',
    [(1, 'early'), (2, 'early'), (2, 'late'), (3, 'early'), (4, 'early')],
)
def test_a_failure_while_deleting(cloud, number, when):
  ok(tpu_vm(cloud, 'create'))
  cloud.forget_calls()
  done = tpu_vm(cloud, 'delete', FAIL_CALL=str(number), FAIL=when)
  step = 'delete' if number == 2 else 'look'
  refused(done, f"step '{step}' failed with exit code 1")
  cloud.forget_calls()
  ok(tpu_vm(cloud, 'delete'))
  assert not (cloud.folder / 'queued-resources').exists()


@pytest.mark.parametrize(
    'file, state',
    [
        ('queued-resources', 'SUSPENDED'),
        ('queued-resources', 'FAILED'),
        ('tpu-vm', 'PREEMPTED'),
    ],
)
def test_restart_after_a_preemption(cloud, file, state):
  ok(tpu_vm(cloud, 'restart'))
  (cloud.folder / file).write_text(f'{state}\n')
  assert ok(tpu_vm(cloud, 'status')).stdout == 'p: dead\n'
  refused(tpu_vm(cloud, 'create'), 'call restart')
  refused(tpu_vm(cloud, 'run'), 'p is gone (preempted')
  ok(tpu_vm(cloud, 'restart'))
  running(cloud)
  assert (cloud.folder / 'history').read_text() == 'created\ncreated\n'


def test_watch_restarts_and_sees_the_end(cloud):
  ok(tpu_vm(cloud, 'restart'))
  (cloud.folder / 'tpu-vm').write_text('PREEMPTED\n')
  for worker in WORKERS:
    (cloud.folder / worker / 'active').unlink()
  with subprocess.Popen(
      [shutil.which('bash'), 'launch/tpu_vm.sh', 'watch', *FLAGS, '--poll=1'],
      cwd=cloud.repository,
      env=cloud.variables,
      stderr=subprocess.PIPE,
      text=True,
  ) as watch:
    for line in watch.stderr:
      if line == 'p: run.\n':
        break
    end(cloud, 0, 0)
    assert watch.wait(60) == 0
    assert 'the run has ended well' in watch.stderr.read()
  running_again = (cloud.folder / 'history').read_text()
  assert running_again == 'created\ncreated\n'


def end(cloud, *codes):
  """Lets main end on the workers, once it has begun there; not for None."""
  for worker, code in zip(WORKERS, codes, strict=True):
    if code is None:
      continue
    home = cloud.folder / worker
    for _ in range(300):
      if (home / 'active').exists():
        break
      time.sleep(0.1)
    (home / 'palign/exit_code').write_text(f'{code}\n')
    (home / 'active').unlink()


def test_watch_stops_when_main_fails(cloud):
  ok(tpu_vm(cloud, 'restart'))
  end(cloud, 1, 1)
  refused(tpu_vm(cloud, 'watch'), 'main has failed on a worker; call logs')


def starts(cloud):
  """How often main was started."""
  return len([call for call in cloud.calls if 'host.sh\\ start' in call])


def next_ends(cloud, *codes):
  """The next starts on all workers end at once with these codes."""
  for worker in WORKERS:
    text = ''.join(f'{code}\n' for code in codes)
    (cloud.folder / worker / 'ends').write_text(text)


# The slice looks READY all the while; None goes on.
@pytest.mark.parametrize(
    'codes',
    [
        *((134, 134), (137, 134), (134, None), (0, 139), (137, None)),
        (137, 1),  # An error that may come of the kill.
    ],
)
def test_watch_starts_again_what_was_killed(cloud, codes):
  ok(tpu_vm(cloud, 'restart'))
  end(cloud, *codes)
  next_ends(cloud, 134, 0)
  done = ok(tpu_vm(cloud, 'watch'))
  assert done.stderr.count('main was killed, or lost a machine') == 2
  assert 'the run has ended well' in done.stderr
  assert starts(cloud) == 3
  assert (cloud.folder / 'history').read_text() == 'created\n'


@pytest.mark.parametrize('workers', [WORKERS, WORKERS[:1], WORKERS[1:]])
def test_watch_starts_again_what_has_left_no_code(cloud, workers):
  ok(tpu_vm(cloud, 'restart'))
  for worker in workers:  # systemd stops a service that ran out of memory.
    (cloud.folder / worker / 'active').unlink()
  next_ends(cloud, 0)
  ok(tpu_vm(cloud, 'watch'))
  assert starts(cloud) == 2


@pytest.mark.parametrize('number', [3, 12, 15])
def test_watch_goes_on_when_a_look_or_a_restart_fails(cloud, number):
  ok(tpu_vm(cloud, 'restart'))
  end(cloud, 134, 134)
  next_ends(cloud, 134, 134, 0)
  cloud.forget_calls()
  done = ok(tpu_vm(cloud, 'watch', FAIL_CALL=str(number)))
  assert f'call {number} failed on purpose' in done.stderr
  assert 'the run has ended well' in done.stderr


def test_watch_asks_for_another_slice_when_workers_do_not_answer(cloud):
  ok(tpu_vm(cloud, 'restart'))
  (cloud.folder / 'unreachable').write_text('yes')
  with subprocess.Popen(
      [shutil.which('bash'), 'launch/tpu_vm.sh', 'watch', *FLAGS],
      cwd=cloud.repository,
      env=cloud.variables,
      stderr=subprocess.PIPE,
      text=True,
  ) as watch:
    for line in watch.stderr:
      if line == 'p: run.\n':
        break
    end(cloud, 0, 0)
    assert watch.wait(60) == 0
  looks = [call for call in cloud.calls if 'host.sh\\ status' in call]
  assert len(looks) > 10
  assert (cloud.folder / 'history').read_text() == 'created\ncreated\n'


def test_watch_gives_up_on_a_program_that_dies_at_once(cloud):
  ok(tpu_vm(cloud, 'restart'))
  end(cloud, 134, 134)
  next_ends(cloud, *[134] * 9)
  message = 'main was killed within minutes of its start, 3 times in a row'
  refused(tpu_vm(cloud, 'watch'), message)
  assert starts(cloud) == 1 + 3


@pytest.mark.parametrize('other', [134, 0, None])
def test_an_error_counts_more_than_whom_it_has_killed(cloud, other):
  ok(tpu_vm(cloud, 'restart'))
  end(cloud, other, 1)
  refused(tpu_vm(cloud, 'watch'), 'main has failed on a worker; call logs')
  assert starts(cloud) == 1


def test_a_dry_run_runs_nothing(cloud):
  for verb in ('create', 'setup', 'run', 'status', 'logs', 'restart', 'delete'):
    done = ok(tpu_vm(cloud, verb, *FLAGS, '--dry-run'))
    lines = done.stdout.splitlines()
    assert lines
    assert all(line.startswith(('gcloud ', 'tar ')) for line in lines)
  assert not cloud.calls
  assert (
      'queued-resources create p'
      in tpu_vm(cloud, 'restart', *FLAGS, '--dry-run').stdout
  )


def test_a_dry_run_prints_what_a_run_does(cloud):
  ok(tpu_vm(cloud, 'create'))
  ok(tpu_vm(cloud, 'setup'))
  cloud.forget_calls()
  dry = ok(tpu_vm(cloud, 'run', *FLAGS, '--dry-run')).stdout.splitlines()
  ok(tpu_vm(cloud, 'run'))
  assert dry == [f'gcloud {call}' for call in cloud.calls]


@pytest.mark.parametrize('lacking', ['--name', '--zone', '--project'])
def test_a_missing_place(cloud, lacking):
  flags = [flag for flag in FLAGS if not flag.startswith(f'{lacking}=')]
  refused(tpu_vm(cloud, 'status', *flags), f'Error: {lacking} is missing; ')


@pytest.mark.parametrize(
    'verb, flags, message',
    [
        ('create', [], '--accelerator is missing; say what to ask for'),
        ('create', ['--type=v5p'], '--topology is missing; --type needs it'),
        ('create', ['--topology=4x4x4'], '--type is missing; --topology needs'),
        (
            'create',
            ['--type=v5p', '--topology=2x2x1', '--accelerator=v5p-8'],
            '--accelerator and --type are both given',
        ),
        ('create', ['--accelerator=x'], '--runtime-version is missing and not'),
        ('run', [], '--config is missing; name one of configs/'),
        ('run', ['--config=mine.py'], 'is not in configs/'),
        ('run', ['--config=configs/no.py'], 'no such file; configs/ has'),
        ('run', ['--config=configs/quickstart.py'], '--workdir is missing;'),
        (
            'run',
            ['--config=configs/quickstart.py', '--workdir=runs/1'],
            'is on no disk that all workers share',
        ),
        (
            'run',
            ['--config=configs/quickstart.py', '--workdir=/data/1', '--spot'],
            'goes when a --spot slice goes',
        ),
        ('run', ['--colour=red'], '--colour=red is no flag'),
        ('logs', ['--worker=x'], '--worker=x is no number'),
        ('status', ['--poll=x'], '--poll=x is no number'),
        ('status', ['--name=A/b'], '--name=A/b is no name'),
        ('setup', [], 'p is not there; call create first'),
        ('fly', [], 'fly: it can be create, setup, run,'),
    ],
)
def test_wrong_flags(cloud, verb, flags, message):
  refused(tpu_vm(cloud, verb, *PLACE, *flags), message)
  assert not [call for call in cloud.calls if ' describe ' not in call]


def test_the_line_that_tells_most_is_quoted(cloud):
  ok(tpu_vm(cloud, 'create'))
  for verb in ('run', 'stop'):
    refused(tpu_vm(cloud, verb), 'exit code 1: not set up; call setup first.')
  ok(tpu_vm(cloud, 'setup'))
  ok(tpu_vm(cloud, 'run'))
  done = tpu_vm(cloud, 'run', *FLAGS, '--stages=sft')
  refused(done, 'a run with other flags is going on; run stop first. (all')


def test_no_gcloud(cloud):
  (cloud.folder / 'bin/gcloud').unlink()
  refused(tpu_vm(cloud, 'status'), 'gcloud is not on PATH; install')
