"""Writes a report's blocks as Markdown, its figures as links to PNG files."""

from collections.abc import Sequence
import re

from palign_jax.report import blocks, html, numbers


def text(raw: str) -> str:
  """Returns text on one line that Markdown shows as it is."""
  line = ' '.join(html.clean(raw).split())
  line = line.replace('&', '&amp;').replace('<', '&lt;').replace('>', '&gt;')
  return re.sub(r'([\\`*_\[\]|#~$])', r'\\\1', line)


def page(title: str, subtitle: str, sections: Sequence[blocks.Section]) -> str:
  """Returns the whole report."""
  parts = [f'# {text(title)}', text(subtitle)]
  for section in sections:
    parts.append(f'## {text(section.title)}')
    parts.extend(map(_block, section.blocks))
  return '\n\n'.join(parts) + '\n'


def _block(block: blocks.Block) -> str:
  return _WRITERS[type(block)](block)


def _text(block: blocks.Text) -> str:
  line = text(block.text)
  return f'> {line}' if block.kind == 'missing' else line


def _headline(block: blocks.Headline) -> str:
  def score(name, value):
    if value is None:
      return f'{name} {numbers.NONE}'
    range_ = numbers.percent_range(*value[1:])
    return f'{name} **{numbers.percent(value[0])}** ({range_})'

  line = f'**{text(block.benchmark)}**, {text(block.metric)}: ' + ', '.join(
      [score('before', block.before), score('after', block.after)]
  )
  if block.difference is not None:
    value, low, high = block.difference
    line += (
        f', difference **{numbers.points(value)} points**'
        f' ({numbers.points_range(low, high)})'
    )
  return f'{line}. {text(block.note)}'


def _table(block: blocks.Table) -> str:
  line = lambda cells: '| ' + ' | '.join(cells) + ' |'
  rows = [
      line(map(text, block.head)),
      line('---:' if side == 'r' else '---' for side in block.align),
      *(line(map(text, row)) for row in block.rows),
  ]
  caption = f'{text(block.caption)}\n\n' if block.caption else ''
  return caption + '\n'.join(rows)


def _figure(block: blocks.Figure) -> str:
  caption = text(block.caption)
  return f'![{caption}]({block.name}.png)\n\n*{caption}*'


_MARKS = {'cut': ('\n‖ ', ' ‖\n'), 'gap': ('\n[', ']\n')}


def _passage(block: blocks.Passage) -> str:
  words = ''
  for span in block.spans:
    left, right = _MARKS.get(span.kind, ('', ''))
    words += left + html.clean(span.text) + right
  # A fence longer than any run of backticks inside holds whatever comes.
  longest = max(map(len, re.findall('`+', words)), default=0)
  fence = '`' * max(3, longest + 1)
  return f'{text(block.label)}:\n\n{fence}text\n{words}\n{fence}'


def _fold(block: blocks.Fold) -> str:
  badge = f' ({text(block.badge)})' if block.badge else ''
  return '\n\n'.join(
      [f'### {text(block.title)}{badge}', *map(_block, block.blocks)]
  )


_WRITERS = {
    blocks.Text: _text,
    blocks.Headline: _headline,
    blocks.Table: _table,
    blocks.Figure: _figure,
    blocks.Passage: _passage,
    blocks.Fold: _fold,
}
