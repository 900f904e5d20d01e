#!/usr/bin/env bash
# Format, lint, and every test but those marked gpu: what CI and people run.
#
#   bash launch/check.sh [FLAGS OF pytest...]
set -euo pipefail
cd "$(dirname "$0")/.."

source launch/environment.sh requirements-dev.txt .venv
# libtpu is here to compile for TPUs; nothing may look for one.
export JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3

pyink --check palign_jax configs benchmarks tests
ruff check palign_jax configs benchmarks tests
shellcheck --external-sources launch/*.sh launch/*.sbatch .ci/run
python -m pytest --numprocesses=auto --dist=loadfile "$@"
