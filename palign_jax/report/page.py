"""Renders a work directory as a page, a Markdown file and PNG figures."""

from collections.abc import Mapping
from typing import Any

from etils import epath

from palign_jax.core import jsonl
from palign_jax.report import (
    blocks,
    examples,
    html,
    inputs,
    judging,
    markdown,
    outcome,
    pipeline,
    settings,
)

_SECTIONS = (
    outcome.headline,
    outcome.scores,
    outcome.difficulty,
    examples.answers,
    pipeline.retention,
    judging.prefixes,
    judging.yardstick,
    examples.aligned,
    pipeline.lengths,
    pipeline.training,
    settings.cost,
    settings.ran,
)


def render(workdir: epath.Path, config: Mapping[str, Any]) -> None:
  """Writes report/index.html, report/report.md and report/*.png.

  A section whose input is missing says so; all the others are written.

  Args:
    workdir: Work directory of a run, of any of its stages.
    config: Its config; nested mappings of plain values.

  Raises:
    DataError: If an input is there but broken, or the report cannot be written.
  """
  run = inputs.read(workdir, config)
  sections = [section(run) for section in _SECTIONS]
  title = f'P-ALIGN: {run.name}'
  subtitle = outcome.sentence(run)
  folder = workdir / 'report'
  for figure in blocks.figures(sections):
    jsonl.write_bytes(folder / f'{figure.name}.png', figure.png)
  jsonl.write_text(
      folder / 'report.md', markdown.page(title, subtitle, sections)
  )
  jsonl.write_text(folder / 'index.html', html.page(title, subtitle, sections))
