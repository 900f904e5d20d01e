#!/usr/bin/env bash
# A cloud in the folder $CLOUD for the tests of launch/tpu_vm.sh.
#
# It records every call in $CLOUD/calls, and keeps one queued resource with one
# slice of two workers, each a home folder where ssh's commands really run, and
# which cannot be reached while there is a file $CLOUD/unreachable.
# Call number $FAIL_CALL fails before it does anything, or with FAIL=late after
# it has done it.
set -euo pipefail

printf '%s\n' "$(printf '%q ' "$@")" >> "$CLOUD/calls"
number=$(wc -l < "$CLOUD/calls")

fail() {
  printf 'WARNING: something else.\n' >&2
  printf 'ERROR: (gcloud.compute.tpus) %s\n' "$1" >&2
  exit 1
}

value() {  # value FLAG ARGS...
  local flag=$1 arg
  shift
  for arg in "$@"; do
    [[ $arg != "$flag="* ]] || printf '%s' "${arg#*=}"
  done
}

get() { cat "$CLOUD/$1" 2>/dev/null || true; }

describe() {
  local state
  state=$(get "$1")
  [[ -n $state ]] || fail "NOT_FOUND: Resource 'projects/q/locations/z/$1' was not found"
  echo "$state"
  case $1:$state in  # Time goes on.
    queued-resources:WAITING_FOR_RESOURCES) echo PROVISIONING > "$CLOUD/$1" ;;
    queued-resources:PROVISIONING)
      echo ACTIVE > "$CLOUD/$1"
      echo CREATING > "$CLOUD/tpu-vm"
      mkdir -p "$CLOUD"/worker{0,1}
      ;;
    queued-resources:DELETING) rm "$CLOUD/$1" ;;
    tpu-vm:CREATING) echo READY > "$CLOUD/$1" ;;
  esac
}

create() {
  [[ -z $(get queued-resources) ]] || fail 'ALREADY_EXISTS'
  [[ -n $(value --runtime-version "$@") ]] || fail 'no --runtime-version'
  echo WAITING_FOR_RESOURCES > "$CLOUD/queued-resources"
  echo created >> "$CLOUD/history"
}

delete() {
  [[ -n $(get queued-resources) ]] || fail 'NOT_FOUND'
  echo DELETING > "$CLOUD/queued-resources"
  rm -rf "$CLOUD"/tpu-vm "$CLOUD"/worker? "$CLOUD"/unreachable
}

each_worker() {  # each_worker WHICH COMMAND...
  local which=$1 home
  shift
  [[ $(get tpu-vm) == READY ]] || fail 'FAILED_PRECONDITION: not READY'
  [[ -z $(get unreachable) ]] || fail 'ssh: connect to host 10.0.0.3: timed out'
  for home in "$CLOUD"/worker?; do
    [[ $which != all && $home != *"worker$which" ]] || "$@" "$home"
  done
}

on() { (cd "$2" && HOME=$2 bash -c "$1"); }
receive() { cp "$1" "$3/${2#*:}"; }

verb() {
  shift 2  # compute tpus
  local kind=$1 verb=$2
  shift 2
  case $verb in
    describe) describe "$kind" ;;
    create) create "$@" ;;
    delete) delete ;;
    ssh) each_worker "$(value --worker "$@")" on "$(value --command "$@")" ;;
    scp) each_worker "$(value --worker "$@")" receive "$1" "$2" ;;
    *) fail "unknown: $verb" ;;
  esac
}

if [[ $number == "${FAIL_CALL:-}" ]]; then
  [[ ${FAIL:-early} != late ]] || verb "$@" > /dev/null
  fail "call $number failed on purpose"
fi
verb "$@"
