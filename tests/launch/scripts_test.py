"""The restart loop, one host, many, Slurm and GKE, around a fake main."""

import os
import pathlib
import re
import shutil
import signal
import string
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
SCRIPTS = sorted(
    file for e in ('sh', 'sbatch') for file in (ROOT / 'launch').glob(f'*.{e}')
)


@pytest.mark.parametrize('file', SCRIPTS, ids=lambda file: file.name)
def test_shellcheck_finds_nothing(file):
  done = subprocess.run(
      ['shellcheck', '--external-sources', file.relative_to(ROOT)],
      cwd=ROOT,
      env=os.environ | {'PATH': f'{ROOT}/.venv/bin:{os.environ["PATH"]}'},
      capture_output=True,
      text=True,
  )
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('file', SCRIPTS, ids=lambda file: file.name)
def test_a_script_says_how_it_is_called(file):
  lines = file.read_text().splitlines()
  header = [line for line in lines[1:12] if line.startswith('#')]
  assert any(re.match(r'#   (bash|source|sbatch) ', line) for line in header)
  assert 'set -euo pipefail' in lines or file.name == 'environment.sh'


def again(cloud, codes, *variables):
  """Runs the loop over a main that exits with these codes in turn."""
  (cloud.folder / 'codes').write_text(''.join(f'{c}\n' for c in codes))
  return cloud.run(
      *('launch/again.sh', 'python', '-m', 'palign_jax.main', '--x=1 2'),
      CODES=str(cloud.folder / 'codes'),
      PALIGN_PAUSE='0',
      PALIGN_EXIT_FILE=str(cloud.folder / 'exit_code'),
  )


@pytest.mark.parametrize(
    'codes, starts',
    [([0], 1), ([75, 75, 0], 3), ([75, 1, 0], 2), ([134], 1), ([143, 0], 1)],
)
def test_again_on_75_only(cloud, codes, starts):
  done = again(cloud, codes)
  assert done.stdout.splitlines() == ['main    --x=1 2'] * starts
  assert done.returncode == codes[starts - 1]
  assert (cloud.folder / 'exit_code').read_text() == f'{done.returncode}\n'


@pytest.mark.parametrize('code', [75, 0])
def test_a_signal_ends_the_loop_with_the_command_s_code(cloud, code):
  child = f'trap "exit {code}" TERM; echo up; while true; do sleep 0.1; done'
  with subprocess.Popen(
      [*(shutil.which('bash'), 'launch/again.sh', 'bash', '-c'), child],
      cwd=cloud.repository,
      env=cloud.variables
      | {'PALIGN_EXIT_FILE': str(cloud.folder / 'exit_code')},
      stdout=subprocess.PIPE,
      text=True,
  ) as loop:
    assert loop.stdout.readline() == 'up\n'
    loop.send_signal(signal.SIGTERM)
    assert loop.wait(60) == code
  # It did not end by itself: a reboot starts it again.
  assert not (cloud.folder / 'exit_code').exists()


def test_a_worker_s_service_starts_main_again(cloud):
  (cloud.folder / 'palign').mkdir()
  (cloud.folder / 'palign/code').symlink_to(cloud.repository)
  for verb in (['install'], ['start', '--config=a b', "--workdir=it's"]):
    assert cloud.run('launch/host.sh', *verb).returncode == 0
  (cloud.folder / 'codes').write_text('75\n0\n')
  done = cloud.run(
      str(cloud.folder / 'palign/run.sh'),
      CODES=str(cloud.folder / 'codes'),
      PALIGN_PAUSE='0',
  )
  line = "main auto   --config=a b --workdir=it's"
  assert done.stdout.splitlines() == [line] * 2
  (cloud.folder / 'active').unlink()
  status = cloud.run('launch/host.sh', 'status').stdout
  assert status.endswith(': ended with 0\n')
  unit = (cloud.folder / 'units/palign.service').read_text()
  assert f'ConditionPathExists=!{cloud.folder}/palign/exit_code' in unit


def test_one_host_with_gpus(cloud):
  flags = ['--config=c', '--workdir=w']
  for lacking in flags:
    rest = [flag for flag in flags if flag != lacking]
    done = cloud.run('launch/gpu.sh', *rest)
    assert done.returncode == 1
    assert f'Error: {lacking[:-2]} is missing' in done.stderr
  done = cloud.run('launch/gpu.sh', *flags)
  assert 'nvidia-smi finds no GPU' in done.stderr
  (cloud.folder / 'bin/nvidia-smi').symlink_to(shutil.which('true'))
  (cloud.folder / 'codes').write_text('75\n3\n')
  done = cloud.run(
      *('launch/gpu.sh', *flags),
      CODES=str(cloud.folder / 'codes'),
      PALIGN_PAUSE='0',
  )
  assert done.returncode == 3
  assert done.stdout.splitlines() == ['main    --config=c --workdir=w'] * 2


SCONTROL = """
case $1 in
  show) printf '%s\\n' n1 n2 ;;
  *) echo "$@" > "$CLOUD/scontrol" ;;
esac
"""


def slurm(cloud, code, **variables):
  """Runs the job script, of which srun starts process 1."""
  srun = 'echo "${PALIGN_COORDINATOR:-}"; SLURM_PROCID=1 exec "$@"'
  for name, text in (('srun', srun), ('scontrol', SCONTROL)):
    path = cloud.folder / 'bin' / name
    path.write_text(f'#!/bin/bash\n{text}\n')
    path.chmod(0o755)
  (cloud.folder / 'codes').write_text(f'{code}\n')
  done = cloud.run(
      *('launch/slurm.sbatch', '--config=c', '--x=1 2'),
      CODES=str(cloud.folder / 'codes'),
      SLURM_SUBMIT_DIR=str(cloud.repository),
      SLURM_JOB_ID='4099',
      SLURM_JOB_NODELIST='n[1-2]',
      SLURM_JOB_NUM_NODES='2',
      **variables,
  )
  assert done.returncode == code, done.stderr
  return done.stdout.splitlines()


@pytest.mark.parametrize('code, requeued', [(0, 0), (75, 1), (1, 0)])
def test_a_slurm_job_goes_back_to_the_queue_on_75(cloud, code, requeued):
  # One process of every host; where they meet follows from the job.
  assert slurm(cloud, code) == ['n1:61443', 'main  1 2 --config=c --x=1 2']
  assert (cloud.folder / 'scontrol').exists() == bool(requeued)


def test_a_slurm_job_with_a_process_for_each_gpu(cloud):
  lines = slurm(cloud, 0, SLURM_NTASKS_PER_NODE='8')
  assert lines == ['', 'main auto   --config=c --x=1 2']


def test_hosts_on_this_machine(cloud):
  done = cloud.run('launch/local_hosts.sh', '3', '--config=c', PALIGN_PORT='9')
  assert done.returncode == 0
  assert sorted(done.stdout.splitlines()) == [
      f'[{i}] main  {i} 3 --config=c' for i in range(3)
  ]


def test_one_failing_host_ends_the_others(cloud):
  main = cloud.folder / 'bin/main'
  main.write_text(
      '#!/bin/bash\n((PALIGN_HOST == 1)) && exit 9\nexec sleep 60\n'
  )
  main.chmod(0o755)
  done = cloud.run('launch/local_hosts.sh', '3', PYTHON='main', PALIGN_PORT='9')
  assert done.returncode == 9


def test_hosts_that_are_told_to_end_say_so(cloud):
  main = cloud.folder / 'bin/main'
  main.write_text(
      "#!/bin/bash\ntrap 'exit 75' TERM\necho up\n"
      'while true; do sleep 0.1; done\n'
  )
  main.chmod(0o755)
  with subprocess.Popen(
      [shutil.which('bash'), 'launch/local_hosts.sh', '2'],
      cwd=cloud.repository,
      env=cloud.variables | {'PYTHON': 'main', 'PALIGN_PORT': '9'},
      stdout=subprocess.PIPE,
      text=True,
  ) as script:
    assert {script.stdout.readline() for _ in range(2)} == {
        '[0] up\n',
        '[1] up\n',
    }
    script.terminate()
    assert script.wait(30) == 75


@pytest.mark.parametrize('number', ['', '0', '--config=c'])
def test_no_number_of_hosts(cloud, number):
  done = cloud.run('launch/local_hosts.sh', number)
  assert done.returncode == 1
  assert 'is no number of processes; call it as' in done.stderr


def test_the_gke_template():
  text = (ROOT / 'launch/gke_job.yaml').read_text()
  names = set(re.findall(r'\$\{(\w+)\}', text))
  numbers = {'SLICES': 2, 'HOSTS': 16, 'CHIPS': 4}
  filled = {name: name.lower() for name in names} | numbers
  job = yaml.safe_load(string.Template(text).substitute(filled))
  (slice_,) = job['spec']['replicatedJobs']
  assert slice_['replicas'] == 2
  spec = slice_['template']['spec']
  assert spec['parallelism'] == spec['completions'] == 16
  rules = spec['podFailurePolicy']['rules']
  assert rules[-1]['onExitCodes']['values'] == [75, 134, 137]
  (container,) = spec['template']['spec']['containers']
  assert container['name'] == rules[-1]['onExitCodes']['containerName']
  assert container['command'][-1] == (
      'exec python -m palign_jax.main --config=config --workdir=workdir flags'
  )
  assert container['env'] == [{'name': 'PALIGN_HOSTS', 'value': 'auto'}]
  exports = set(re.findall(r'\b([A-Z]+)=', text.partition('apiVersion')[0]))
  assert names == exports
