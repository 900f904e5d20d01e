"""Writes a report's blocks as one HTML page that needs nothing beside it.

Every text goes through `text`, which leaves no markup in it.
"""

from collections.abc import Sequence
import html
import re

from etils import epath

from palign_jax.report import blocks, numbers

_CSS = epath.resource_path('palign_jax') / 'report' / 'page.css'
# Control characters, halves of surrogate pairs (UTF-8 has no bytes for them),
# the two non-characters, and what turns the direction of all that follows.
_UNPRINTABLE = re.compile(
    '[\0-\b\v\f\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff'
    '\u202a-\u202e\u2066-\u2069]'
)


def clean(raw: str) -> str:
  """Replaces what no text file should hold by the replacement character."""
  raw = raw.replace('\r\n', '\n').replace('\r', '\n')
  return _UNPRINTABLE.sub('\ufffd', raw)


def text(raw: str) -> str:
  """Returns text as HTML, safe between tags and inside quoted attributes."""
  return html.escape(clean(raw), quote=True)


def page(title: str, subtitle: str, sections: Sequence[blocks.Section]) -> str:
  """Returns the whole page."""
  links = ''.join(
      f'<a href="#{s.anchor}">{text(s.short)}</a>' for s in sections
  )
  body = '\n'.join(map(_section, sections))
  return (
      '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      '<meta name="color-scheme" content="light dark">\n'
      f'<title>{text(title)}</title>\n<style>\n{_CSS.read_text()}</style>\n'
      f'</head>\n<body>\n<nav><div>{links}</div></nav>\n<main>\n<header>'
      f'<h1>{text(title)}</h1><p class="sub">{text(subtitle)}</p></header>\n'
      f'{body}\n</main>\n</body>\n</html>\n'
  )


def _section(section: blocks.Section) -> str:
  return (
      f'<section id="{section.anchor}">\n<h2>{text(section.title)}</h2>\n'
      + '\n'.join(map(_block, section.blocks))
      + '\n</section>'
  )


def _block(block: blocks.Block) -> str:
  return _WRITERS[type(block)](block)


def _text(block: blocks.Text) -> str:
  return f'<p class="{block.kind}">{text(block.text)}</p>'


def _headline(block: blocks.Headline) -> str:
  def side(label, score, tone):
    value, low, high = score or (None, None, None)
    return (
        f'<div class="{tone}"><span>{label}</span>'
        f'<b>{numbers.percent(value)}</b>'
        f'<small>{numbers.percent_range(low, high)}</small></div>'
    )

  value, low, high = block.difference or (None, None, None)
  return (
      f'<div class="headline"><h3>{text(block.benchmark)}'
      f' <span>{text(block.metric)}</span></h3><div class="sides">'
      + side('before', block.before, 'before')
      + '<i aria-hidden="true">→</i>'
      + side('after', block.after, 'after')
      + f'<div><span>difference, points</span><b>{numbers.points(value)}</b>'
      f'<small>{numbers.points_range(low, high)}</small></div></div>'
      f'<p>{text(block.note)}</p></div>'
  )


def _table(block: blocks.Table) -> str:
  def row(cells, tag):
    return (
        '<tr>'
        + ''.join(
            f'<{tag} class="{side}">{text(cell)}</{tag}>'
            for cell, side in zip(cells, block.align, strict=True)
        )
        + '</tr>'
    )

  narrow = ' class="narrow"' if len(block.align) < 4 else ''
  caption = f'<caption>{text(block.caption)}</caption>' if block.caption else ''
  return (
      f'<div class="scroll"><table{narrow}>{caption}<thead>'
      f'{row(block.head, "th")}</thead>\n<tbody>'
      + '\n'.join(row(cells, 'td') for cells in block.rows)
      + '</tbody></table></div>'
  )


def _figure(block: blocks.Figure) -> str:
  svg = block.svg.replace(
      '<svg ', f'<svg role="img" aria-label="{text(block.caption)}" ', 1
  )
  return (
      f'<figure><div class="scroll">{clean(svg)}</div>'
      f'<figcaption>{text(block.caption)}</figcaption></figure>'
  )


def _passage(block: blocks.Passage) -> str:
  spans = ''.join(
      f'<span class="{s.kind}">{text(s.text)}</span>' for s in block.spans
  )
  return f'<h4>{text(block.label)}</h4><div class="passage">{spans}</div>'


def _fold(block: blocks.Fold) -> str:
  badge = (
      f'<span class="badge {block.tone}">{text(block.badge)}</span>'
      if block.badge
      else ''
  )
  return (
      f'<details{" open" if block.opened else ""}><summary>'
      f'<span class="title">{text(block.title)}</span>{badge}</summary>\n'
      + '\n'.join(map(_block, block.blocks))
      + '\n</details>'
  )


_WRITERS = {
    blocks.Text: _text,
    blocks.Headline: _headline,
    blocks.Table: _table,
    blocks.Figure: _figure,
    blocks.Passage: _passage,
    blocks.Fold: _fold,
}
