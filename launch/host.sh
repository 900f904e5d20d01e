#!/usr/bin/env bash
# One worker of a TPU VM, called there by launch/tpu_vm.sh.
#
#   bash launch/host.sh install       Python 3.12 and the requirements
#   bash launch/host.sh start FLAGS   palign_jax.main FLAGS, in the background
#   bash launch/host.sh stop          SIGTERM, then wait
#   bash launch/host.sh status        one line
#
# Everything is under ~/palign: code (this repository), venv, run.sh (what
# runs), run.log, exit_code (of a run that ended by itself).  A systemd service
# starts again after a reboot what had not ended, and passes on its SIGTERM.
set -euo pipefail
cd "$(dirname "$0")/.."

home=$HOME/palign
venv=$home/venv
unit=${PALIGN_UNITS:-/etc/systemd/system}/palign.service

die() {
  echo "Error: $*" >&2
  exit 1
}

# Makes the environment of Python 3.12, which older images do not have.
make_environment() {
  [[ ! -f $venv/made ]] || return 0
  rm -rf "$venv"
  if ! python3.12 -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --seed --python 3.12 "$venv"
  fi
  touch "$venv/made"
}

install() {
  make_environment
  # shellcheck disable=SC2034
  PYTHON=$venv/bin/python
  source launch/environment.sh requirements-tpu.txt "$venv"
}

running() { systemctl is-active --quiet palign.service; }

# Prints the script that the service runs.
script() {
  printf '#!/usr/bin/env bash\n'
  printf 'export PALIGN_HOSTS=auto PALIGN_EXIT_FILE=%q\n' "$home/exit_code"
  printf 'exec bash launch/again.sh %q -m palign_jax.main' "$venv/bin/python"
  printf ' %q' "$@"
  printf '\n'
}

service() {
  cat <<UNIT
[Unit]
Description=palign_jax
Wants=network-online.target
After=network-online.target
ConditionPathExists=!$home/exit_code

[Service]
User=$(id -un)
WorkingDirectory=$home/code
ExecStart=/bin/bash $home/run.sh
StandardOutput=append:$home/run.log
StandardError=append:$home/run.log
KillMode=mixed
TimeoutStopSec=300

[Install]
WantedBy=multi-user.target
UNIT
}

start() {
  [[ -f $venv/made ]] || die 'not set up; run setup first.'
  if running; then
    [[ $(script "$@") == "$(cat "$home/run.sh")" ]] ||
      die 'a run with other flags is going on; run stop first.'
    echo 'Runs already.'
    return
  fi
  script "$@" > "$home/run.sh"
  service | sudo tee "$unit" > /dev/null
  rm -f "$home/exit_code"
  sudo systemctl daemon-reload
  sudo systemctl enable --quiet palign.service
  sudo systemctl restart palign.service
}

stop() {
  [[ ! -f $unit ]] || sudo systemctl disable --quiet --now palign.service
}

status() {
  if running; then
    echo "$(hostname): running"
  elif [[ -f $home/exit_code ]]; then
    echo "$(hostname): ended with $(cat "$home/exit_code")"
  else
    echo "$(hostname): not running"
  fi
}

case ${1:-} in
  install | start | stop | status) "$@" ;;
  *) die "${1:-nothing}: it can be install, start, stop or status." ;;
esac
