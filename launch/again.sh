#!/usr/bin/env bash
# Runs a command, and runs it again for as long as it exits with 75.
#
#   bash launch/again.sh COMMAND...
#
# 75 (EX_TEMPFAIL) is how palign_jax.main says "saved after a preemption, start
# me again".  Any other code ends the loop and is the loop's own, codes above 128
# too: where one of many processes was killed all must start together, which is
# for whoever started them (`watch` of tpu_vm.sh, the cluster).  SIGTERM and
# SIGINT reach the command as SIGTERM; then its code ends the loop, 75 or not.
# PALIGN_PAUSE is the wait between two starts in seconds (5); to the file
# PALIGN_EXIT_FILE goes the last code, unless a signal ended the loop.
set -euo pipefail

child='' signal=''

pass_on() {
  signal=fresh
  [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true
}

# Sets `code`: a signal ends `wait` early, so it is asked again.
wait_for_child() {
  local again
  code=0
  wait "$child" || code=$?
  while [[ $signal == fresh ]]; do
    signal=seen again=0
    wait "$child" || again=$?
    ((again == 127)) || code=$again
  done
}

finish() {
  if [[ -z $signal && -n ${PALIGN_EXIT_FILE:-} ]]; then
    echo "$1" > "$PALIGN_EXIT_FILE"
  fi
  exit "$1"
}

if (($# == 0)); then
  echo 'Error: no command; call it as: bash launch/again.sh COMMAND...' >&2
  exit 2
fi
pause=${PALIGN_PAUSE:-5}
trap pass_on TERM INT
while true; do
  "$@" &
  child=$!
  [[ -z $signal ]] || pass_on  # It came before the child had a name.
  wait_for_child
  child=''
  [[ $code == 75 && -z $signal ]] || finish "$code"
  echo "Exit code 75 (saved, start me again): again in $pause s." >&2
  sleep "$pause" &
  wait $! || true
  [[ -z $signal ]] || finish 75
done
