"""Turns drawings into SVG and PNG.  The only file that knows matplotlib.

In the SVG every colour is replaced by the page's own variable, so that a figure
turns dark with the page, and its words are words in the page's font.
"""

from collections.abc import Callable
import dataclasses
import io
import re
import warnings

import matplotlib
import matplotlib.axes
import matplotlib.figure

# Okabe and Ito's, which the colour-blind tell apart.
COLORS = {
    'before': '#6e7781',
    'after': '#0072b2',
    'good': '#009e73',
    'warn': '#d55e00',
    'ink': '#24292f',
    'quiet': '#57606a',
    'line': '#d0d7de',
    'page': '#ffffff',
}
_WIDTH = 7.2  # Inches.
_STYLE = {
    'font.size': 9,
    'text.color': COLORS['ink'],
    'text.parse_math': False,  # A dollar in a name is a dollar.
    'axes.edgecolor': COLORS['line'],
    'axes.labelcolor': COLORS['quiet'],
    'axes.titlesize': 9,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'xtick.color': COLORS['line'],
    'ytick.color': COLORS['line'],
    'xtick.labelcolor': COLORS['quiet'],
    'ytick.labelcolor': COLORS['quiet'],
    'svg.fonttype': 'none',
    'svg.hashsalt': 'palign_jax',  # The same figure gives the same bytes.
}


@dataclasses.dataclass(frozen=True)
class Picture:
  """One figure: SVG to stand inside a page, and the bytes of a PNG."""

  svg: str
  png: bytes


def drawn(
    draw: Callable[..., None],
    *args,
    height: float,
    grid: tuple[int, int] = (1, 1),
    **subplots,
) -> Picture:
  """Calls `draw(axes, *args)` on a fresh figure and saves it twice."""
  with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph .* missing from')
    figure = matplotlib.figure.Figure((_WIDTH, height), layout='constrained')
    axes = figure.subplots(*grid, squeeze=False, **subplots)
    draw(axes[0, 0] if grid == (1, 1) else axes.ravel(), *args)
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format='png', dpi=160)
    figure.set_layout_engine('none')  # Keep it for the SVG.
    figure.savefig(svg, format='svg', transparent=True, metadata={'Date': None})
  return Picture(_inlined(svg.getvalue()), png.getvalue())


def _inlined(svg: str) -> str:
  """Makes SVG fit to stand in a page, in the page's font and colours."""
  svg = svg[svg.index('<svg') :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.S)
  svg = re.sub(r'<!--.*?-->', '', svg, flags=re.S)
  svg = re.sub(r'<g id="[^"]*"', '<g', svg)  # Else ids repeat on the page.
  svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r'\1', svg, count=1)
  svg = re.sub(r'(font: [^;"]*?[\d.]+px )[^;"]*', r'\1var(--sans)', svg)
  for name, color in COLORS.items():
    svg = svg.replace(color, f'var(--{name})')
  return re.sub(r'\s*\n\s*', '\n', svg)


def bare(ax: matplotlib.axes.Axes) -> None:
  """Leaves of the y axis only the names."""
  ax.spines['left'].set_visible(False)
  ax.tick_params(axis='y', length=0, labelcolor=COLORS['ink'])


def short(text: str, most: int) -> str:
  """Returns a name that fits its place in a figure."""
  text = ' '.join(text.split())
  return text if len(text) <= most else text[: most - 1] + '…'
