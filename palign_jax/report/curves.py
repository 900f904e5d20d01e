"""Figures made of points and curves: scores, difficulty, verdicts, loss.

They are drawn on axes that plots.py makes, with names beside the curves
instead of a legend.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import numpy as np

from palign_jax.report import measures, numbers, plots

Interval = tuple[float, float, float]  # Value, low, high.


def scores(rows: Sequence[tuple[str, Mapping[str, Interval]]]) -> plots.Picture:
  """Draws each benchmark's score per model, with its interval."""
  return plots.drawn(_scores, rows, height=0.55 + 0.72 * len(rows))


def _scores(ax, rows):
  for y, (_, models) in enumerate(rows):
    for (model, (value, low, high)), dy in zip(
        sorted(models.items(), reverse=True), (-0.17, 0.17), strict=False
    ):
      color = plots.COLORS[model]
      ax.plot([100 * low, 100 * high], [y + dy] * 2, color=color, lw=2)
      ax.plot([100 * value], [y + dy], 'o', color=color, ms=7)
      ax.annotate(
          f'{model}  {numbers.percent(value)}',
          (100 * high, y + dy),
          (7, 0),
          textcoords='offset points',
          va='center',
          color=color,
      )
  shares = [i for _, models in rows for i in models.values()]
  low = max(0, 100 * min(s[1] for s in shares) - 6)
  high = max(100 * max(s[2] for s in shares), low + 1)  # All may be 0.
  ax.set_xlim(low, high + 0.2 * (high - low))  # Room for the names.
  ax.set_ylim(len(rows) - 0.5, -0.5)
  ax.set_yticks(range(len(rows)), [plots.short(name, 24) for name, _ in rows])
  ax.locator_params(axis='x', nbins=6)
  ax.set_xlabel('pass@1, %, with 95% interval')
  ax.grid(axis='x', color=plots.COLORS['line'], lw=0.5)
  ax.set_axisbelow(True)
  plots.bare(ax)


def difficulty(
    models: Mapping[str, Sequence[measures.Bin | None]], name: str
) -> plots.Picture:
  """Draws accuracy against difficulty for each model, with intervals."""
  return plots.drawn(_difficulty, models, name, height=2.8)


def _difficulty(ax, models, name):
  labels = {}
  ends = {
      model: 100 * next(b.share for b in reversed(bins) if b is not None)
      for model, bins in models.items()
  }
  close = max(ends.values()) - min(ends.values()) < 9  # Names would collide.
  for shift, (model, bins) in enumerate(sorted(models.items(), reverse=True)):
    color = plots.COLORS[model]
    found = [(x, b) for x, b in enumerate(bins) if b is not None]
    x = np.array([x for x, _ in found]) + 0.08 * (2 * shift - 1)
    ax.plot(x, [100 * b.share for _, b in found], 'o-', color=color, ms=5)
    low, high = (
        [100 * getattr(b, s) for _, b in found] for s in ('low', 'high')
    )
    ax.vlines(x, low, high, color=color, lw=1.2)
    ax.annotate(
        model,
        (x[-1], ends[model]),
        (9, (5 if ends[model] == max(ends.values()) else -5) if close else 0),
        textcoords='offset points',
        va='center',
        color=color,
        annotation_clip=False,
    )
    labels |= {x: f'{b.label}\nn = {b.n:,}' for x, b in found}
  ax.set_xticks(list(labels), list(labels.values()))
  ax.set_xlim(-0.4, max(labels) + 0.75)
  ax.set_ylim(-3, 103)
  ax.set_xlabel(name)
  ax.set_ylabel('correct, %')
  ax.grid(axis='y', color=plots.COLORS['line'], lw=0.5)
  ax.set_axisbelow(True)


@dataclasses.dataclass(frozen=True)
class Probes:
  """What the judge said along one trace; `probes` in the order asked."""

  id: str
  total: int  # Sentences of the trace.
  cut: int | None  # Sentences kept.
  probes: Sequence[tuple[int, float]]  # Sentences, p_enough.
  cuts: Mapping[str, int]  # Where each rule would cut; empty if none could.


def p_enough(
    traces: Sequence[Probes], threshold: float | None
) -> plots.Picture:
  """Draws p_enough at every probed cut, one small panel per trace."""
  columns = min(3, len(traces))
  rows = -(-len(traces) // columns)
  return plots.drawn(
      _p_enough,
      traces,
      threshold,
      height=0.4 + 1.65 * rows,
      grid=(rows, columns),
      sharey=True,
  )


def _p_enough(axes, traces, threshold):
  axes = np.atleast_1d(axes)
  for ax in axes[len(traces) :]:
    ax.set_axis_off()
  for i, (ax, trace) in enumerate(zip(axes, traces, strict=False)):
    x, y = zip(*sorted(trace.probes), strict=True)
    many = len(x) > 14  # Then the order of probes says nothing.
    ax.plot(
        x,
        y,
        color=plots.COLORS['after'],
        lw=1,
        marker='' if many else 'o',
        ms=4,
    )
    if threshold is not None:
      ax.axhline(threshold, color=plots.COLORS['quiet'], lw=0.7, ls=(0, (4, 3)))
    if trace.cut is not None:
      ax.axvline(trace.cut, color=plots.COLORS['warn'], lw=1.2)
    if not many:
      _number(ax, trace)
    _rules(ax, trace)
    cut = f'cut {trace.cut}/{trace.total}' if trace.cut else 'dropped'
    ax.set_title(
        f'{plots.short(trace.id, 16)}  ', loc='left', color=plots.COLORS['ink']
    )
    ax.set_title(cut, loc='right', color=plots.COLORS['warn'])
    ax.set_xlim(0, trace.total + 0.5)
    ax.set_ylim(-0.03, 1.06)
    ax.set_yticks([0, 0.5, 1])
    ax.locator_params(axis='x', nbins=4, integer=True)
    if i + 3 >= len(traces):
      ax.set_xlabel('sentences')
    if i % 3 == 0:
      ax.set_ylabel('p_enough')


def _number(ax, trace):
  """Writes the order of the probes beside them, where there is room."""
  numbered = []
  for order, (sentences, value) in enumerate(trace.probes, 1):
    if any(abs(sentences - x) < 0.055 * trace.total for x in numbered):
      continue
    numbered.append(sentences)
    ax.annotate(
        str(order),
        (sentences, value),
        (-4, 3 if value < 0.85 else -9),
        textcoords='offset points',
        ha='right',
        size=7,
        color=plots.COLORS['quiet'],
    )


def _rules(ax, trace):
  """Marks where each rule would cut; those that agree share a line."""
  by_cut = {}
  for name, cut in trace.cuts.items():
    by_cut.setdefault(cut, []).append(name)
  for cut, names in by_cut.items():
    quiet = plots.COLORS['quiet']
    ax.axvline(cut, color=quiet, lw=0.9, ls=(0, (1, 2)))
    ax.annotate(
        ', '.join(plots.short(name, 12) for name in names),
        (cut, 0),
        (-2, 2) if cut > trace.total / 12 else (2, 2),
        textcoords='offset points',
        rotation=90,
        ha='right' if cut > trace.total / 12 else 'left',
        va='bottom',
        size=6,
        color=quiet,
    )


def loss(steps: Sequence[float], losses: Sequence[float]) -> plots.Picture:
  """Draws the training loss, raw and as a running mean."""
  return plots.drawn(_loss, steps, losses, height=2.6)


def _loss(ax, steps, losses):
  window = max(1, len(losses) // 20)
  means = measures.smooth(losses, window)
  points = measures.thin(list(zip(steps, losses, means, strict=True)), 600)
  steps, losses, means = zip(*points, strict=True)
  ax.plot(steps, losses, color=plots.COLORS['line'], lw=1)
  ax.plot(steps, means, color=plots.COLORS['after'], lw=1.8)
  ax.annotate(
      f'{means[-1]:.3f}',
      (steps[-1], means[-1]),
      (5, 0),
      textcoords='offset points',
      va='center',
      color=plots.COLORS['after'],
      annotation_clip=False,
  )
  ax.margins(x=0.01)
  ax.set_xlabel('step')
  ax.set_ylabel('loss per token, nats')
  ax.grid(axis='y', color=plots.COLORS['line'], lw=0.5)
