#!/usr/bin/env bash
# palign_jax.main in N processes on this machine, which take each other for
# hosts: for learning and tests.
#
#   bash launch/local_hosts.sh N --config=configs/....py [FLAGS OF main...]
#
# Needs an environment with requirements.txt: .venv, or the one that is active,
# or PYTHON=...  Each process has one CPU device, or JAX_NUM_CPU_DEVICES of
# them.  Lines begin with the process's number.  When one fails the others are
# ended, and its exit code is the script's; so it is on SIGTERM (75).
set -euo pipefail
cd "$(dirname "$0")/.."

number=${1:-}
if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
  echo "Error: ${number:-nothing} is no number of processes; call it as: bash launch/local_hosts.sh 2 --config=..." >&2
  exit 1
fi
shift

python=${PYTHON:-}
if [[ -z $python ]]; then
  python=python
  [[ -n ${VIRTUAL_ENV:-} || ! -x .venv/bin/python ]] || python=.venv/bin/python
fi

free_port() {
  "$python" - <<'PY'
import socket

with socket.socket() as s:
  s.bind(('localhost', 0))
  print(s.getsockname()[1])
PY
}

processes=() told=''
end_all() { kill -TERM "${processes[@]}" 2>/dev/null || true; }
trap 'told=yes; end_all' TERM INT
trap end_all EXIT

port=${PALIGN_PORT:-$(free_port)}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export PALIGN_COORDINATOR=localhost:$port PALIGN_NUM_HOSTS=$number
for ((i = 0; i < number; i++)); do
  PALIGN_HOST=$i "$python" -m palign_jax.main "$@" \
    > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2) &
  processes+=($!)
done
code=0 left=$number
while ((left > 0 && code == 0)); do
  told=''
  wait -n "${processes[@]}" || code=$?
  if [[ -n $told ]]; then  # A signal has cut the wait short: no process's code.
    code=0
  else
    left=$((left - 1))
  fi
done
end_all
wait
exit "$code"
