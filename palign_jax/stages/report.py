"""Writes the report of a run, of whatever stages it has."""

from collections.abc import Mapping
import json
from typing import Any

from palign_jax.report import page
from palign_jax.stages import context as context_lib


def check(context: context_lib.Context) -> None:
  """A report can always be written."""
  del context


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes report/ and returns the summary."""
  clock = context_lib.Clock()
  if context.peers.index:  # One is enough.
    return {}
  config = json.loads((context.workdir / 'config.json').read_text())
  page.render(context.workdir.path, config)
  return {'page': 'report/index.html', **clock.rates(0)}
