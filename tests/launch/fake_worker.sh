#!/usr/bin/env bash
# What a worker has besides a shell, for tests: copied as sudo, systemctl and
# python.  The service is on when ~/active is there; while ~/ends has lines, a
# start ends at once with the next of them as main's code.  palign_jax.main
# prints its flags and exits with the next code of $CODES.
set -euo pipefail

python() {
  case "${1:-} ${2:-}" in
    '-m venv')
      mkdir -p "$3/bin"
      cp "$0" "$3/bin/python"
      echo "PATH=$3/bin:\$PATH" > "$3/bin/activate"
      ;;
    '-m pip') echo "$*" >> "$HOME/pip" ;;
    '-m palign_jax.main')
      echo "main ${PALIGN_HOSTS:-} ${PALIGN_HOST:-} ${PALIGN_NUM_HOSTS:-} ${*:3}"
      if [[ -f ${CODES:-} ]]; then
        code=$(head -n 1 "$CODES")
        sed -i 1d "$CODES"
        exit "$code"
      fi
      ;;
  esac
}

systemctl() {
  case $1 in
    is-active) [[ -f $HOME/active ]] ;;
    restart)
      touch "$HOME/active"
      if [[ -s $HOME/ends ]]; then
        head -n 1 "$HOME/ends" > "$HOME/palign/exit_code"
        sed -i 1d "$HOME/ends"
        rm "$HOME/active"
      fi
      ;;
    disable) rm -f "$HOME/active" ;;
  esac
}

case $(basename "$0") in
  sudo) exec "$@" ;;
  systemctl) systemctl "$@" ;;
  python*) python "$@" ;;
esac
