"""Figures made of bars: what is left, what is kept, how long texts are.

They are drawn on axes that plots.py makes, with names beside the bars instead
of a legend.
"""

from collections.abc import Sequence

import numpy as np

from palign_jax.report import measures, numbers, plots


def funnel(levels: Sequence[measures.Level]) -> plots.Picture:
  """Draws how many questions each stage left, and the reasons of the rest."""
  return plots.drawn(_funnel, levels, height=0.2 + 0.5 * len(levels))


def _funnel(ax, levels):
  widest = max(1, *(level.left for level in levels))
  above = levels[0].left
  for y, level in enumerate(levels):
    ax.barh(y, level.left, 0.62, color=plots.COLORS['after'])
    lost = sum(level.lost.values())
    if lost:
      ax.barh(y, lost, 0.62, left=level.left, color=plots.COLORS['line'])
    ax.annotate(
        f'{level.left:,}',
        (max(above, level.left), y),
        (6, 0),
        textcoords='offset points',
        va='center',
        weight='bold',
    )
    why = [f'{name} {n:,}' for name, n in level.lost.items()]
    more = [f'{len(why) - 3} more reasons'] if len(why) > 4 else []
    text = f'{numbers.MINUS}{lost:,}:  ' + ', '.join(
        [plots.short(w, 28) for w in why[: 3 if more else 4]] + more
    )
    if lost:
      ax.annotate(
          text,
          (max(above, level.left), y),
          (16 + 7 * len(f'{level.left:,}'), 0),
          textcoords='offset points',
          va='center',
          color=plots.COLORS['warn'],
          size=8,
      )
    above = level.left
  ax.set_xlim(0, 1.85 * widest)
  ax.set_ylim(len(levels) - 0.5, -0.5)
  ax.set_yticks(range(len(levels)), [level.name for level in levels])
  ax.set_xticks([])
  ax.spines['bottom'].set_visible(False)
  plots.bare(ax)


def ratios(
    sufficient: Sequence[float], others: Sequence[float]
) -> plots.Picture:
  """Draws the histogram of prefix ratios.

  Args:
    sufficient: Sentences kept / all sentences, where the judge said enough.
    others: The same of prefixes kept without such a verdict.
  """
  return plots.drawn(_ratios, sufficient, others, height=2.5)


def _ratios(ax, sufficient, others):
  edges = np.linspace(0, 1, 21)
  below, _ = np.histogram(sufficient, edges)
  above, _ = np.histogram(others, edges)
  left = edges[:-1]
  ax.bar(left, below, 0.045, align='edge', color=plots.COLORS['after'])
  if len(others):
    ax.bar(
        left,
        above,
        0.045,
        bottom=below,
        align='edge',
        color=plots.COLORS['warn'],
    )
    highest = int(np.argmax(above))
    ax.annotate(
        'kept without “enough”',
        (left[highest], below[highest] + above[highest] / 2),
        (-6, 0),
        textcoords='offset points',
        ha='right',
        va='center',
        color=plots.COLORS['warn'],
    )
  top = float((below + above).max())
  if len(sufficient):
    middle = float(np.median(sufficient))
    ax.plot([middle] * 2, [0, 1.08 * top], color=plots.COLORS['ink'], lw=1)
    ax.annotate(
        f'median {middle:.2f}',
        (middle, 1.08 * top),
        (5, 0),
        textcoords='offset points',
        va='center',
    )
  ax.set_xlim(0, 1)
  ax.set_ylim(0, 1.18 * top)
  ax.set_xlabel('share of the trace’s sentences that the prefix keeps')
  ax.set_ylabel('prefixes')
  ax.locator_params(axis='y', nbins=4, integer=True)


def lengths(rows: Sequence[tuple[str, Sequence[int]]]) -> plots.Picture:
  """Draws the spread of lengths: median, middle half and middle 90%."""
  return plots.drawn(_lengths, rows, height=0.6 + 0.42 * len(rows))


def _lengths(ax, rows):
  for y, (name, values) in enumerate(rows):
    color = plots.COLORS[
        name.split()[-1] if name.startswith('answer') else 'good'
    ]
    p5, p25, p50, p75, p95 = measures.quantiles([max(v, 1) for v in values])
    ax.plot([p5, p95], [y, y], color=color, lw=1.2)
    ax.plot([p25, p75], [y, y], color=color, lw=6, solid_capstyle='butt')
    ax.plot(
        [p50], [y], 'o', color=plots.COLORS['page'], mec=color, mew=1.5, ms=6
    )
    ax.annotate(
        f'{np.median(values):,.0f}',
        (p95, y),
        (7, 0),
        textcoords='offset points',
        va='center',
        color=color,
    )
  ax.set_xscale('log')
  ax.set_ylim(len(rows) - 0.5, -0.5)
  low, high = ax.get_xlim()
  ax.set_xlim(low, high * (high / low) ** 0.08)  # Room for the numbers.
  ax.set_yticks(range(len(rows)), [name for name, _ in rows])
  ticks = [d * 10**k for k in range(9) for d in (1, 2, 5)]
  ticks = [t for t in ticks if low <= t <= high]
  ax.set_xticks(ticks, [f'{t:,}' for t in ticks])
  ax.set_xticks([], minor=True)
  ax.set_xlabel('characters (log scale); the number is the median')
  ax.grid(axis='x', color=plots.COLORS['line'], lw=0.5)
  ax.set_axisbelow(True)
  plots.bare(ax)
