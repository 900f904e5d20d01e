#!/usr/bin/env bash
# A run of palign_jax.main on a Cloud TPU slice, from nothing to its end.
#
#   bash launch/tpu_vm.sh COMMAND --name=NAME --zone=ZONE --project=PROJECT \
#     FLAGS [-- MORE FLAGS OF palign_jax.main]
#
#   create   asks for the slice (queued resources) and waits until it is there
#   setup    copies code and configs to all workers, installs Python 3.12
#   run      main on all workers, in the background; started again when it
#            exits with 75 and after a reboot
#   logs     follows the log of --worker (0)
#   status   the slice, and what every worker does
#   stop     SIGTERM to main on all workers
#   restart  after a preemption: a new slice if the old one is gone, setup, run
#   watch    waits for the run's end, with a restart after every preemption and
#            when main was killed or has lost a worker (3 times at most within
#            minutes of a start), with a new slice when a worker has not
#            answered 10 times in a row
#   delete   gives the slice back
#
# The same flags serve all of them; a step that is done already is left alone,
# so after a failure call the same again.
#
#   --accelerator=v5p-128, or --type=v5p --topology=4x4x4   what to ask for
#   --runtime-version=...   follows from the accelerator up to v6e
#   --spot, --reserved, --service-account=..., --network=..., --subnetwork=...
#   --config=configs/....py[:ARG]   --workdir=gs://BUCKET/RUN   --stages=...
#   --config.FIELD=...      any field, as with main
#   --worker=N              whose log
#   --poll=30               seconds between two looks
#   --dry-run               prints the commands and runs none
set -euo pipefail
cd "$(dirname "$0")/.."

name='' zone='' project='' accelerator='' type='' topology='' runtime=''
config='' workdir='' worker=0 poll=30 dry='' spot=''
options=() main_flags=()
set_up='[ -e palign/code ] || { echo "Error: not set up; call setup first." >&2; exit 1; }'

say() { echo "$*" >&2; }

die() {
  echo "Error: $*" >&2
  exit 1
}

parse() {
  while (($#)); do
    case $1 in
      --) shift && main_flags+=("$@") && return ;;
      --name=*) name=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --accelerator=* | --accelerator-type=*) accelerator=${1#*=} ;;
      --type=*) type=${1#*=} ;;
      --topology=*) topology=${1#*=} ;;
      --runtime-version=*) runtime=${1#*=} ;;
      --spot) spot=yes && options+=("$1") ;;
      --reserved | --service-account=* | --network=* | --subnetwork=*)
        options+=("$1")
        ;;
      --config=*) config=${1#*=} ;;
      --workdir=*) workdir=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --poll=*) poll=${1#*=} ;;
      --config.*=* | --stages=*) main_flags+=("$1") ;;
      --dry-run) dry=yes ;;
      *) die "$1 is no flag of launch/tpu_vm.sh; write --flag=value, and other flags of main after --." ;;
    esac
    shift
  done
}

# require FLAG VALUE HINT
require() { [[ -n $2 ]] || die "$1 is missing; $3."; }

check_place() {
  require --name "$name" 'name the slice, as in --name=palign'
  [[ $name =~ ^[a-z][a-z0-9-]*$ ]] || die "--name=$name is no name of a slice; use lower-case letters, digits and hyphens."
  require --zone "$zone" 'give a zone where you have quota, as in --zone=us-east5-a'
  require --project "$project" 'give the cloud project, as in --project=my-project'
  [[ $worker =~ ^([0-9]+|all)$ ]] || die "--worker=$worker is no number; give one, as in --worker=0."
  [[ $poll =~ ^[0-9]+$ ]] || die "--poll=$poll is no number of seconds; give one, as in --poll=30."
  [[ -n $dry ]] || command -v gcloud > /dev/null ||
    die 'gcloud is not on PATH; install the Google Cloud CLI and run gcloud auth login.'
}

check_slice() {
  if [[ -n $type$topology ]]; then
    [[ -z $accelerator ]] || die '--accelerator and --type are both given; give one of them.'
    require --type "$type" '--topology needs it, as in --type=v5p'
    require --topology "$topology" '--type needs it, as in --topology=4x4x4'
  else
    require --accelerator "$accelerator" 'say what to ask for, as in --accelerator=v5litepod-16, or --type=v5p --topology=4x4x4'
  fi
  if [[ -z $runtime ]]; then
    case $accelerator$type in
      v6e*) runtime=v2-alpha-tpuv6e ;;
      v5p*) runtime=v2-alpha-tpuv5 ;;
      v5e* | v5lite*) runtime=v2-alpha-tpuv5-lite ;;
      v[234] | v[234]-*) runtime=tpu-ubuntu2204-base ;;
      *) die "--runtime-version is missing and not known for $accelerator$type; take it from the cloud's list of TPU software versions." ;;
    esac
  fi
}

check_run() {
  local file=${config%%:*}
  require --config "$config" 'name one of configs/, as in --config=configs/qwen2_5_7b.py'
  [[ $file == configs/* && $file != *..* ]] ||
    die "--config=$config is not in configs/, which is what setup copies; put it there."
  [[ -f $file ]] || die "--config=$config: no such file; configs/ has $(cd configs && echo *.py)."
  require --workdir "$workdir" 'say where results go, as in --workdir=gs://bucket/run1'
  case $workdir in
    gs://?*) ;;
    /*) [[ -z $spot ]] || die "--workdir=$workdir goes when a --spot slice goes; name a folder on gs://." ;;
    *) die "--workdir=$workdir is on no disk that all workers share; name a folder on gs://, or a shared disk by its full path." ;;
  esac
}

# Prints a command as one would type it.
show() {
  printf '%q ' "$@" >&3
  printf '\n' >&3
}

# attempt STEP COMMAND...: if it fails, one line says which step and why.
attempt() {
  local step=$1 code=0
  shift
  if [[ -n $dry ]]; then
    show "$@"
    return
  fi
  say "$name: $step."
  "$@" 2> "$log" || code=$?
  ((code == 0)) || failed "$step" "$code"
}

# Quotes the worker's own error, or else gcloud's, or else the last line.
failed() {
  local why pattern
  for pattern in '^Error: ' '^ERROR' '[^[:space:]]'; do
    why=$(grep "$pattern" "$log" | tail -n 1 || true)
    [[ -z $why ]] || break
  done
  why=${why#Error: }
  die "step '$1' failed with exit code $2: ${why:-no message} (all of it: $log); mend this and call the same again, what is done stays done."
}

tpus() {  # tpus STEP KIND VERB FLAGS...
  local step=$1 kind=$2 verb=$3
  shift 3
  attempt "$step" gcloud compute tpus "$kind" "$verb" "$name" \
    "--zone=$zone" "--project=$project" --quiet "$@"
}

on_workers() {  # on_workers STEP WORKER COMMAND
  tpus "$1" tpu-vm ssh "--worker=$2" "--command=$3"
}

# Prints the state of what is called `name`; NONE if nothing is.
state_of() {  # state_of KIND FIELD STATE_IN_A_DRY_RUN
  local code=0
  local command=(gcloud compute tpus "$1" describe "$name" "--zone=$zone"
    "--project=$project" "--format=value($2)")
  if [[ -n $dry ]]; then
    show "${command[@]}"
    echo "$3"
    return
  fi
  "${command[@]}" 2> "$log" || code=$?
  if ((code)); then
    grep -qi 'NOT_FOUND\|not found' "$log" || failed look "$code"
    echo NONE
  fi
}

# Prints none, waiting, ready or dead.
health() {  # health WHAT_IT_IS_IN_A_DRY_RUN
  local queued node assumed=ACTIVE
  [[ $1 != none ]] || assumed=NONE
  [[ $1 != dead ]] || assumed=SUSPENDED
  queued=$(state_of queued-resources state.state "$assumed") || exit 1
  case $queued in
    NONE) echo none ;;
    FAILED | SUSPENDING | SUSPENDED | DELETING) echo dead ;;
    ACTIVE)
      node=$(state_of tpu-vm state READY) || exit 1
      case $node in
        READY) echo ready ;;
        NONE | PREEMPTED | STOPPING | STOPPED | DELETING | TERMINATED) echo dead ;;
        *) echo waiting ;;
      esac
      ;;
    *) echo waiting ;;
  esac
}

wait_until_ready() {
  local now before=''
  while true; do
    now=$(health ready) || exit 1
    case $now in
      ready) return ;;
      waiting) [[ $before == "$now" ]] || say "$name: waiting for the slice." ;;
      *) die "step 'wait': $name is ${now/none/gone}; call restart, which asks anew." ;;
    esac
    before=$now
    sleep "$poll"
  done
}

require_ready() {
  local now
  now=$(health ready) || exit 1
  case $now in
    ready) ;;
    none) die "$name is not there; call create first." ;;
    waiting) die "$name is not ready yet; call create, which waits for it." ;;
    dead) die "$name is gone (preempted, or its request failed); call restart." ;;
  esac
}

create() {
  local now what
  check_slice
  now=$(health none) || exit 1
  case $now in
    none)
      what=("--accelerator-type=$accelerator")
      [[ -z $type ]] || what=("--type=$type" "--topology=$topology")
      tpus create queued-resources create "--node-id=$name" "${what[@]}" \
        "--runtime-version=$runtime" ${options[@]+"${options[@]}"}
      ;;
    dead) die "$name is gone (preempted, or its request failed); call restart, or delete first." ;;
    *) say "$name is there already." ;;
  esac
  wait_until_ready
}

setup() {
  local archive=$work/source.tar.gz sum there
  require_ready
  attempt pack tar --exclude=__pycache__ -czf "$archive" \
    palign_jax configs launch pyproject.toml requirements*.txt
  sum=source
  [[ -n $dry ]] || sum=$(cksum < "$archive" | cut -d ' ' -f 1)
  there=palign-$sum.tar.gz
  attempt copy gcloud compute tpus tpu-vm scp "$archive" "$name:$there" \
    "--zone=$zone" "--project=$project" --quiet --worker=all
  # A run that is going on keeps the folder that it began with.
  on_workers unpack all "set -e; mkdir -p palign/code-$sum; tar -xzf $there -C palign/code-$sum; ln -sfn code-$sum palign/code; rm -f $there"
  on_workers install all 'bash palign/code/launch/host.sh install'
}

run() {
  local flags
  check_run
  require_ready
  flags=$(printf ' %q' "--config=$config" "--workdir=$workdir" \
    ${main_flags[@]+"${main_flags[@]}"})
  on_workers run all "$set_up; bash palign/code/launch/host.sh start$flags"
}

stop() {
  require_ready
  on_workers stop all "$set_up; bash palign/code/launch/host.sh stop"
}

logs() {
  require_ready
  local command=(gcloud compute tpus tpu-vm ssh "$name" "--zone=$zone"
    "--project=$project" --quiet "--worker=$worker"
    '--command=tail -n 100 -F palign/run.log')
  if [[ -n $dry ]]; then show "${command[@]}"; else "${command[@]}"; fi
}

status() {
  local now
  now=$(health ready) || exit 1
  [[ -n $dry ]] || echo "$name: $now"
  # shellcheck disable=SC2016
  [[ $now != ready ]] || on_workers status all 'if [ -e palign/code ]; then bash palign/code/launch/host.sh status; else echo "$(hostname): not set up"; fi'
}

restart() {
  local now
  check_slice
  check_run
  now=$(health dead) || exit 1
  [[ $now != dead ]] || delete
  create
  setup
  stop
  run
}

# Prints ended, failed, killed, running or idle: what the workers do together.
# A code above 128 is no error, though the slice may still look READY: main was
# killed (137, 139), which may be why another worker says 1, or it has lost
# another worker (134), which may be by an error there.  One that is not running
# and has no code was killed with its service.
progress() {
  local lines
  lines=$(status) || exit 1
  if grep -Eq ': ended with (129|13[0-35-9]|1[4-9][0-9]|2[0-9]{2})$' <<< "$lines"; then
    echo killed
  elif grep -Eq ': ended with ([1-9]|[1-9][0-9]|1[01][0-9]|12[0-8])$' <<< "$lines"; then
    echo failed
  elif grep -Eq ': (ended with 134|not running)$' <<< "$lines"; then
    echo killed
  elif grep -q ': running$' <<< "$lines"; then
    echo running
  elif grep -q ': not ' <<< "$lines"; then
    echo idle
  elif grep -q ': ended with 0$' <<< "$lines"; then
    echo ended
  else
    echo idle
  fi
}

watch() {
  local now began='' quick=0 silent=0
  check_slice
  check_run
  if [[ -n $dry ]]; then restart && return; fi
  while true; do
    now=$(progress) || now=unknown  # It has said why; the next look may do.
    silent=$([[ $now == unknown ]] && echo $((silent + 1)) || echo 0)
    case $now in
      unknown)  # Where the cloud itself does not answer, nothing is given back.
        if ((silent >= 10)) && [[ $(health ready) == ready ]]; then
          say "$name: a worker has not answered $silent times in a row; asking for another slice."
          if (delete); then now=idle; fi
          silent=0
        fi
        ;;
      ended) say "$name: the run has ended well." && return ;;
      failed) die "$name: main has failed on a worker; call logs, mend it, and call restart." ;;
      killed)
        if [[ -n $began ]]; then  # Each start counts once.
          quick=$((SECONDS - began < 600 ? quick + 1 : 0)) began=''
        fi
        ((quick < 3)) || die "$name: main was killed within minutes of its start, $quick times in a row; call logs (is memory enough?), mend it, and call restart."
        say "$name: main was killed, or lost a machine."
        ;;
    esac
    if [[ $now == killed || $now == idle ]]; then
      if (restart); then began=$SECONDS; else say "$name: another try in $poll s."; fi
    fi
    sleep "$poll"
  done
}

delete() {
  local now
  now=$(state_of queued-resources state.state ACTIVE) || exit 1
  while [[ $now == SUSPENDING ]]; do
    sleep "$poll"
    now=$(state_of queued-resources state.state ACTIVE) || exit 1
  done
  case $now in
    NONE) say "$name is not there." && return ;;
    DELETING) ;;
    *) tpus delete queued-resources delete --force ;;
  esac
  while true; do
    now=$(state_of queued-resources state.state NONE) || exit 1
    [[ $now != NONE ]] || return 0
    sleep "$poll"
  done
}

verb=${1:-}
[[ -z $verb ]] || shift
case $verb in
  create | setup | run | logs | status | stop | restart | watch | delete) ;;
  *) die "${verb:-no command}: it can be create, setup, run, logs, status, stop, restart, watch or delete." ;;
esac
parse "$@"
check_place
exec 3>&1
log=${TMPDIR:-/tmp}/palign_$name.log
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$verb"
