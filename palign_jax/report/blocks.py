"""What a report consists of, before it is HTML or Markdown.

Every text here is raw: html.py and markdown.py escape it, each in its own way,
so that nothing a model or a data set wrote can become markup.
"""

from collections.abc import Sequence
import dataclasses
import typing
from typing import Protocol


@typing.runtime_checkable
class Picture(Protocol):
  """What plots.py draws."""

  svg: str
  png: bytes


@dataclasses.dataclass(frozen=True)
class Text:
  """A paragraph.  `kind` is body, note (small) or missing (an absent input)."""

  text: str
  kind: str = 'body'


@dataclasses.dataclass(frozen=True)
class Headline:
  """The result in large type.

  `before`, `after` and `difference` are shares with their 95% intervals
  (value, low, high); None where a side was not run.
  """

  benchmark: str
  metric: str
  before: tuple[float, float, float] | None
  after: tuple[float, float, float] | None
  difference: tuple[float, float, float] | None
  note: str


@dataclasses.dataclass(frozen=True)
class Table:
  """A table of strings; `align` has one letter per column, l or r."""

  head: Sequence[str]
  rows: Sequence[Sequence[str]]
  align: str
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Figure:
  """A picture twice: as SVG for the page and as PNG bytes for a file."""

  name: str
  caption: str
  svg: str
  png: bytes


@dataclasses.dataclass(frozen=True)
class Span:
  """A run of text.  `kind` is plain, prefix, rest, cut or gap."""

  text: str
  kind: str = 'plain'


@dataclasses.dataclass(frozen=True)
class Passage:
  """Words of a question or a model, white space kept."""

  label: str
  spans: Sequence[Span]


@dataclasses.dataclass(frozen=True)
class Fold:
  """Blocks behind a title that opens; `tone` is '', good or bad."""

  title: str
  badge: str
  tone: str
  blocks: Sequence['Block']
  opened: bool = False


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the report with a place in its navigation."""

  anchor: str
  title: str
  short: str
  blocks: Sequence['Block']


Block = Text | Headline | Table | Figure | Passage | Fold


def figure(name: str, caption: str, picture: Picture) -> Figure:
  """Returns a drawing with its caption."""
  return Figure(name, caption, picture.svg, picture.png)


def missing(file: str, stage: str) -> Text:
  """Returns the sentence that stands where an input is not there."""
  return Text(
      f'{file} is not there: the stage {stage} has not finished in this work'
      ' directory.',
      'missing',
  )


def figures(sections: Sequence[Section]) -> list[Figure]:
  """Returns every figure of the report, also those inside folds."""
  found = []

  def visit(blocks):
    for block in blocks:
      if isinstance(block, Figure):
        found.append(block)
      elif isinstance(block, Fold):
        visit(block.blocks)

  for section in sections:
    visit(section.blocks)
  return found
