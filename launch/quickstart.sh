#!/usr/bin/env bash
# The whole pipeline on this machine's CPU, in its own environment.
#
#   bash launch/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

source launch/environment.sh requirements.txt .venv
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
start=$SECONDS
python -m palign_jax.main --config=configs/quickstart.py \
  --workdir=runs/quickstart
python - <<'PY'
import json

scores = json.load(open('runs/quickstart/grade/scores.json'))
for benchmark, models in scores.items():
  show = lambda s: f"{100 * s['value']:.1f}% [{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
  print(f'\n{benchmark}: pass@1 with 95% intervals')
  for model in ('before', 'after'):
    print(f"  {model:13}{show(models[model]['pass@1'])}")
  print(f"  {'after-before':13}{show(models['after-before']['pass@1'])}")
PY
echo
echo "$((SECONDS - start)) s.  Report: $PWD/runs/quickstart/report/index.html"
