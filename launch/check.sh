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
# The same bits must come of the code that users run; the rest is compiled in
# three quarters of the time at -O1 (tests/conftest.py).
suite() { python -m pytest --numprocesses=auto --dist=loadfile "$@"; }
suite -m 'not gpu and not bits' "$@"
XLA_FLAGS='' suite -m bits "$@" || [[ $? == 5 ]] # 5: these flags select none.
