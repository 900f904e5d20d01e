"""Cuts each trace to the shortest prefix that the student calls sufficient.

Writes truncate/prefixes.jsonl: one row for every trace, always; and, if the
config asks for it, truncate/yardstick.jsonl: cuts of some traces with what each
judge says of them and what became of their continuations.
"""

from collections.abc import Mapping, Sequence
import contextlib
from typing import Any

from absl import logging

from palign_jax.core import (
    jsonl,
    parts as parts_lib,
    peers as peers_lib,
    progress,
    stopping,
)
from palign_jax.data import traces as traces_lib
from palign_jax.judging import (
    reading as reading_lib,
    rules,
    search,
    verified,
    yardstick,
)
from palign_jax.stages import (
    context as context_lib,
    judges as judges_lib,
    prefixes,
    settings,
    teach,
)

FILE = 'truncate/prefixes.jsonl'
YARDSTICK = 'truncate/yardstick.jsonl'

Row = dict[str, Any]


def check(context: context_lib.Context) -> None:
  """Raises if the stage cannot run with this config."""
  judges_lib.check(context)


def run(context: context_lib.Context) -> Mapping[str, Any]:
  """Writes the prefixes and returns the summary."""
  context_lib.require(context, teach.FILE, 'teach')
  traces = traces_lib.read_traces(
      str(context.workdir / teach.FILE), traces_lib.PRESETS['palign']
  )
  size = context.settings.compute.group
  groups = [traces[i : i + size] for i in range(0, len(traces), size)]
  t = context.settings.truncate
  with contextlib.ExitStack() as stack:
    parts = stack.enter_context(
        context_lib.open_parts(context, FILE, lambda row: row['id'])
    )
    judges = judges_lib.Judges(context, stack)
    with progress.bar('Judging probes', None) as advance:
      for group in _share(context.peers, groups):
        # One that is half done is judged whole: among as many as it was.
        if any(trace['id'] not in parts for trace in group):
          _judge(context, judges, group, parts, advance)
    parts.gather()
    facts = judges.facts(parts.totals())
    rows = parts.rows(trace['id'] for trace in traces)
    # Before the merge: a run that is killed meanwhile goes on from the parts.
    if t.yardstick.traces and not context.peers.index:
      facts['yardstick'] = _measure(context, judges, traces, rows)
    parts.merge(rows)
    _note_retreats(context, parts)
  return {**prefixes.counts(rows, t, judges.threshold), **facts}


def _note_retreats(
    context: context_lib.Context, parts: parts_lib.Parts
) -> None:
  """Has the manifest say from which row on memory forced other batches."""
  totals = parts.totals()
  changed = {
      f'judging.{name}': [0, totals[name]]
      for name in judges_lib.RETREATS
      if totals.get(name)
  }
  if changed and not context.peers.index:
    rows = {'truncate': parts.num_before(judges_lib.RETREATS)}
    context.workdir.note({'changed': changed, 'rows': rows})


def _share(
    peers: peers_lib.Peers, groups: Sequence[Sequence[Row]]
) -> Sequence[Sequence[Row]]:
  """Returns this host's groups: whole ones, so that they are as on one host."""
  if len(groups) < peers.count:
    logging.warning(
        '%d groups of traces for %d hosts: lower config.compute.group to give'
        ' all of them work.',
        len(groups),
        peers.count,
    )
  return peers_lib.share(peers, groups)


def _judge(
    context: context_lib.Context,
    judges: judges_lib.Judges,
    group: Sequence[Row],
    parts: parts_lib.Parts,
    advance: reading_lib.Advance,
) -> None:
  """Judges a group and writes its rows, with what they took."""
  before = judges.taken()
  rows = _cut(context, judges, group, advance)
  taken = {k: v - before[k] for k, v in judges.taken().items()}
  with stopping.later():  # A group is written whole.
    for row in rows:
      if row['id'] not in parts:
        parts.add(row, **taken)
        taken = {}
    parts.flush()
  context.peers.check()


def _cut(
    context: context_lib.Context,
    judges: judges_lib.Judges,
    traces: Sequence[Row],
    advance: reading_lib.Advance,
) -> list[Row]:
  """Returns the row of every trace of a group."""
  t = context.settings.truncate
  limit = judges_lib.limit(context, t.verdict)
  readings, reasons = {}, {}
  for row in traces:
    trace = judges_lib.trace(row, t.splitter)
    reading = reading_lib.Reading(trace, 0)
    if trace.ends:
      reading = judges.chosen.read(trace, limit)
    readings[row['id']], reasons[row['id']] = reading, _refused(reading, t)
  wanted = [r for name, r in readings.items() if not reasons[name]]
  if num := sum(reason == 'too_long' for reason in reasons.values()):
    logging.warning(
        "%d of %d traces are longer than a judge's prompt may be (%d tokens"
        " with question and prompt); config.truncate.too_long='fit' judges as"
        ' much of them as fits.',
        num,
        len(traces),
        limit,
    )
  pick = rules.find(t.rule, num=t.stable, threshold=judges.threshold)
  begin = search.find(t.search, pick)
  found = judges.chosen.search(wanted, lambda r: begin(r.num_cuts), advance)
  if t.verdict == 'verified':
    found = verified.prove(
        found,
        {reading.trace.id: reading.trace for reading in wanted},
        {reading.trace.id: reading.num_cuts for reading in wanted},
        judges.verifier,
        t.verify.max_cuts,
    )
  return [
      prefixes.dropped(row, readings[row['id']].trace.ends, reasons[row['id']])
      if reasons[row['id']]
      else prefixes.kept(
          row, readings[row['id']], found[row['id']], t, judges.threshold
      )
      for row in traces
  ]


def _refused(reading: reading_lib.Reading, t: settings.Truncate) -> str:
  """Returns why a trace is not searched; '' if it is."""
  total = len(reading.trace.ends)
  if not total:
    return 'empty_trace'
  cut_off = reading.num_cuts < total and t.too_long == 'drop'
  return 'too_long' if cut_off or not reading.num_cuts else ''


def _measure(
    context: context_lib.Context,
    judges: judges_lib.Judges,
    traces: Sequence[Row],
    rows: Sequence[Row],
) -> Row:
  """Measures the judges on some of the traces and writes what came of it."""
  t, seed = context.settings.truncate, context.settings.seed
  known = {}
  for row in traces:
    trace = judges_lib.trace(row, t.splitter)
    if trace.ends and verified.is_verifiable(trace):
      known[trace.id] = trace
  names = yardstick.sample(list(known), t.yardstick.traces, seed)
  limit = judges_lib.limit(context, 'label')
  readings = [judges.plain.read(known[name], limit) for name in names]
  measured = yardstick.measure(
      [reading for reading in readings if reading.num_cuts],
      {
          row['id']: row['sufficient_sentences']
          for row in rows
          if prefixes.is_chosen(row)
      },
      judges.plain,
      judges.verifier,
      judges.replier,
      num_cuts=t.yardstick.cuts,
      k=t.yardstick.k,
      reply_limit=judges_lib.limit(context, 'generate'),
  )
  jsonl.write(context.workdir / YARDSTICK, measured.rows)
  retreats = {name: getattr(judges.plain, name) for name in judges_lib.RETREATS}
  return {**yardstick.facts(measured, seed), 'out_of_memory': retreats}
