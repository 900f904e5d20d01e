#!/usr/bin/env bash
# A run of palign_jax.main on this host's NVIDIA GPUs.
#
#   bash launch/gpu.sh --config=configs/....py --workdir=... [FLAGS OF main...]
#
# Installs requirements-gpu.txt into .venv (once), and starts main again for as
# long as it exits with 75 (saved after a preemption); any other code ends it.
# With PALIGN_DRY_RUN=1 it prints the command and runs none.
set -euo pipefail
cd "$(dirname "$0")/.."

die() {
  echo "Error: $*" >&2
  exit 1
}

check_flags() {
  local flag
  for flag in config workdir; do
    [[ " $*" == *" --$flag="* ]] ||
      die "--$flag is missing; call it as: bash launch/gpu.sh --config=configs/....py --workdir=runs/..."
  done
}

check_flags "$@"
if [[ -n ${PALIGN_DRY_RUN:-} ]]; then
  printf '%q ' bash launch/again.sh python -m palign_jax.main "$@"
  echo
  exit
fi
nvidia-smi -L > /dev/null 2>&1 ||
  die 'nvidia-smi finds no GPU here; install the NVIDIA driver, or run main as README says.'
source launch/environment.sh requirements-gpu.txt .venv
exec bash launch/again.sh python -m palign_jax.main "$@"
