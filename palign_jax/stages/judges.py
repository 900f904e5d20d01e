"""The judges that a config asks for, made of the student."""

from collections.abc import Sequence
import contextlib
import functools
from typing import Any

from palign_jax.core import errors, parts as parts_lib
from palign_jax.grading import verify
from palign_jax.judging import (
    calibration as calibration_lib,
    judge as judge_lib,
    labels,
    reading as reading_lib,
    reply,
    reread,
    scorer as scorer_lib,
    search,
    trace as trace_lib,
    trunk_scorer,
    verified,
)
from palign_jax.parallel import memory
from palign_jax.stages import context as context_lib, settings, turns
from palign_jax.text import sentences

_LABEL_ROOM = 8  # Tokens of a label, at most.
# How often memory ended: groups of traces, tokens read together were halved.
RETREATS = ('halved', 'narrowed')


def check(context: context_lib.Context) -> None:
  """Raises if the judges cannot be made, without loading a weight."""
  t, student = context.settings.truncate, context.describe('student')
  context.check_rows()
  search.find(t.search)
  if has_labels(t):
    labels.find(student.tokenizer)
  if roll_out(t):
    turns.check(context)
    context.check_stop('truncate.verify', t.verify.stop, 'student')
  calibration(t)
  empty = trace_lib.Trace('', '', '', ())
  name, most = context.settings.prompts.judge, limit(context, t.verdict)
  length = len(reading_lib.prompt_tokens(student.tokenizer, name, empty, 0))
  if length >= most:
    lower = t.verdict == 'generate'
    raise errors.ConfigError(
        f'config.prompts.judge: {name!r} takes {length} tokens before a'
        f' question or prefix is in it, the context leaves {most}; take a'
        ' shorter prompt, or a student of more positions'
        f'{", or lower config.truncate.max_tokens" if lower else ""}.'
    )


def has_labels(t: settings.Truncate) -> bool:
  """Returns whether labels judge anything, beside replies or alone."""
  return t.verdict != 'generate' or t.yardstick.traces > 0


def roll_out(t: settings.Truncate) -> bool:
  """Returns whether the student's continuations are asked for anything."""
  in_doubt = t.abstained == 'verify' and t.abstain > 0
  return t.verdict == 'verified' or in_doubt or t.yardstick.traces > 0


def calibration(t: settings.Truncate) -> calibration_lib.Calibration:
  """Returns what turns log-odds into verdicts.

  Raises:
    ConfigError: If its band leaves no room for "enough".
    DataError: If it cannot be fitted.
  """
  found = calibration_lib.Calibration(t.threshold, t.calibration == 'prior')
  if rows := t.calibration_rows:
    found = calibration_lib.fitted(found, rows, t.calibration_fit)
  if found.threshold + t.abstain >= 1:
    fitted = ', fitted,' if found.threshold != t.threshold else ''
    raise errors.ConfigError(
        f'config.truncate.abstain is {t.abstain}: from the threshold'
        f' {found.threshold:.6g}{fitted} up to 1 every verdict would abstain;'
        f' take less than {1 - found.threshold:.6g}.'
    )
  return found


def limit(context: context_lib.Context, verdict: str) -> int:
  """Returns how many tokens a judge's prompt may have."""
  t = context.settings.truncate
  room = t.max_tokens if verdict == 'generate' else _LABEL_ROOM
  return context.describe('student').model.max_positions - room


def trace(row: dict[str, Any], splitter: str) -> trace_lib.Trace:
  """Returns a row of the file with the places where it may be cut."""
  text = row['Long-CoT']
  ends = sentences.cuts(text, splitter)
  return trace_lib.Trace(row['id'], row['question'], text, ends, row['answer'])


class Judges:
  """One student in all its roles; each is made when it is first used."""

  def __init__(self, context: context_lib.Context, stack: contextlib.ExitStack):
    """`stack` closes what grades."""
    self._context, self._stack = context, stack
    self._settings, self._t = context.settings, context.settings.truncate
    self._student = context.load('student')
    self.calibration = calibration(self._t)
    # The same for all: what is compiled follows from it, hence every bit.
    budget = None
    if has_labels(self._t):
      gib = self._settings.compute.memory_gib
      budget = memory.budget(gib, context.local_mesh) - self._copies()
    said = context.peers.gather(budget, 'the memory to judge in')
    self._budget = None if budget is None else min(said)

  def _copies(self) -> int:
    """Returns the bytes of the weights that samplers keep beside the judge's.

    On a CPU each has its own, turned (sampling/weights.py).
    """
    if self._context.local_mesh.devices.flat[0].platform != 'cpu':
      return 0
    replies = self._t.verdict == 'generate' or self._t.yardstick.traces > 0
    return (roll_out(self._t) + replies) * memory.per_device(
        self._student.params
    )

  @property
  def threshold(self) -> float:
    """The p_enough from which on a verdict is enough: the band's upper edge."""
    return self.calibration.threshold + self._t.abstain

  @functools.cached_property
  def chosen(self) -> judge_lib.LabelJudge | reply.GenerateJudge:
    """The judge that the config names."""
    t = self._t
    if t.verdict != 'generate':
      in_doubt = t.abstained == 'verify' and t.abstain > 0
      return self._labels(self.calibration, self.verifier if in_doubt else None)
    return self.replier

  @functools.cached_property
  def replier(self) -> reply.GenerateJudge:
    """The student, who replies in words."""
    t = self._t
    return reply.GenerateJudge(
        self._context.sampler(self._student, _drawing(t, 1, 1.0, ())),
        self._student.tokenizer,
        self._settings.prompts.judge,
        seed=self._settings.seed,
        max_tokens=t.max_tokens,
    )

  @functools.cached_property
  def plain(self) -> judge_lib.LabelJudge:
    """The labels as they are, for a yardstick."""
    return self._labels(calibration_lib.Calibration(0.5), None)

  @functools.cached_property
  def verifier(self) -> verified.Verifier:
    """The student's continuations, graded."""
    v = self._t.verify
    grader = verify.Grader(
        num_workers=self._settings.compute.workers, limit_s=v.limit_s
    )
    return verified.Verifier(
        self._context.sampler(
            self._student, _drawing(v, v.k, v.repetition_penalty, v.stop)
        ),
        self._student.tokenizer,
        self._stack.enter_context(grader),
        verified.Writing(
            functools.partial(turns.prompt, self._context),
            functools.partial(turns.graded, self._context),
        ),
        seed=self._settings.seed,
        k=v.k,
        pass_rate=v.pass_rate,
        max_tokens=v.max_tokens,
        max_positions=self._student.model.max_positions,
    )

  def _labels(self, calibration, verifier) -> judge_lib.LabelJudge:
    return judge_lib.LabelJudge(
        self._scorer,
        self._student.tokenizer,
        self._settings.prompts.judge,
        calibration=calibration,
        abstain=self._t.abstain,
        verifier=verifier,
    )

  @functools.cached_property
  def _scorer(self) -> judge_lib.Scorer:
    compute, student = self._settings.compute, self._student
    model = student.params, student.model.config
    mesh = self._context.local_mesh
    same = dict(mesh=mesh, dtype=student.dtype, attention=compute.attention)
    if not compute.shared_trunk:
      return reread.RereadScorer(
          scorer_lib.Scorer(*model, max_tokens=compute.judge_tokens, **same)
      )
    return trunk_scorer.TrunkScorer(
        *model,
        budget=self._budget,
        judge_tokens=compute.judge_tokens,
        **same,
    )

  def taken(self) -> parts_lib.Tally:
    """Returns the tokens and the retreats that judging has taken so far."""
    tokens = self.chosen.num_tokens
    if 'verifier' in self.__dict__:
      tokens += self.verifier.num_tokens
    taken = {'tokens': tokens, 'prompt_tokens': self.chosen.prompt_tokens}
    if self._t.verdict != 'generate':
      for name in ('trunk_tokens', *RETREATS):
        taken[name] = getattr(self.chosen, name)
    return taken

  def facts(self, tally: parts_lib.Tally) -> dict[str, Any]:
    """Returns what the summary says of judging itself.

    Args:
      tally: Of all that was judged, of what `taken` returns.
    """
    compute = self._settings.compute
    facts: dict[str, Any] = {
        'judge_tokens': compute.judge_tokens,
        'shared_trunk': compute.shared_trunk,
        'prompt_tokens': int(tally.get('prompt_tokens', 0)),
    }
    if self._t.verdict != 'generate':
      facts['trunk_tokens'] = int(tally.get('trunk_tokens', 0))
      facts['out_of_memory'] = {k: int(tally.get(k, 0)) for k in RETREATS}
      facts['calibration'] = self.calibration.facts()
    return {**facts, **context_lib.totals(tally)}


def _drawing(
    d: settings.Truncate | settings.Verify,
    n: int,
    repetition_penalty: float,
    stop: Sequence[str],
) -> settings.Drawing:
  return settings.Drawing(
      n=n,
      temperature=d.temperature,
      top_k=0,
      top_p=d.top_p,
      repetition_penalty=repetition_penalty,
      max_tokens=d.max_tokens,
      stop=stop,
  )
