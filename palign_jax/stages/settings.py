"""The sections of a config, typed.  Every field is set in the config file.

A section that is no stage's own: `mesh` (parallel/mesh.py), `benchmarks` (name
to file), `seed`.  stages/validation.py reads them.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Model:
  """A model folder.

  Attributes:
    path: On disk, on gs://, or a name on the Hub; None if no stage needs it.
    dtype: Of frozen weights, computation and cache.
  """

  path: str | None
  dtype: str


@dataclasses.dataclass(frozen=True)
class Prompts:
  """Names of prompts in text/prompts.py."""

  judge: str
  align: str
  answer: str


@dataclasses.dataclass(frozen=True)
class Drawing:
  """How completions are sampled.

  Attributes:
    n: Completions per question.
    temperature: 0 is greedy.
    top_k: 0 is off.
    top_p: 1 is off.
    repetition_penalty: 1 is off; counts prompt and output.
    max_tokens: Of a completion.
    stop: Texts before the first of which a completion ends, if it has any.
  """

  n: int
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]


@dataclasses.dataclass(frozen=True)
class Teach:
  """Where traces come from: `traces` if it is set, else the teacher.

  Attributes:
    questions: A question file for the teacher.
    traces: Ready traces: a file, tfds:FOLDER or hf:FOLDER.
    fields: A preset of data/traces.py or a mapping.
    limit: At most so many rows; 0 is all.
  """

  questions: str | None
  traces: str | None
  fields: Any
  limit: int
  temperature: float
  top_k: int
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]


@dataclasses.dataclass(frozen=True)
class Verify:
  """How the student's own continuations prove a cut.

  Attributes:
    k: Continuations of a cut.
    pass_rate: A cut suffices if at least this share of them is right.
    max_cuts: Longer cuts that are tried when the proposed one fails.
    temperature: 0 is greedy.
    top_p: 1 is off.
    repetition_penalty: 1 is off.
    max_tokens: Of a continuation; one that is cut off is not right.
    stop: Texts that end a continuation, as those of `Align` do.
    limit_s: Seconds that grading one continuation may take.
  """

  k: int
  pass_rate: float
  max_cuts: int
  temperature: float
  top_p: float
  repetition_penalty: float
  max_tokens: int
  stop: Any  # Sequence[str]
  limit_s: float


@dataclasses.dataclass(frozen=True)
class Yardstick:
  """On how much the judges are measured against continuations.

  Attributes:
    traces: How many; 0 is none at all.
    cuts: Of each trace, beside the one that was chosen.
    k: Continuations of each cut, drawn as `Verify` says.
  """

  traces: int
  cuts: int
  k: int


@dataclasses.dataclass(frozen=True)
class Truncate:
  """How prefixes are cut.

  Attributes:
    search: A name in judging/search.py.
    splitter: A name in text/sentences.py.
    verdict: 'label' (probability of the label), 'generate' (a reply, parsed)
      or 'verified' (labels propose a cut, continuations prove it).
    threshold: A prefix suffices from this p_enough on.
    abstain: Half the width, in p_enough, of the band around the threshold in
      which the judge abstains.
    abstained: 'no' (an abstained verdict is not enough) or 'verify' (the
      student's continuations decide).
    rule: How search='curve' picks a cut, a name in judging/rules.py.
    stable: Sufficient cuts in a row that rule='stable' asks for.
    calibration: 'prior' subtracts the log-odds that an empty prefix gets.
    calibration_rows: Rows as a yardstick writes them, to fit on; None for none.
    calibration_fit: 'threshold' (it replaces `threshold`) or 'platt' (p_enough
      becomes the chance that a continuation passes).
    none_enough: What to do with a trace of which no prefix suffices.
    too_long: What to do with a trace that the context does not hold: 'drop' it,
      or 'fit': search what is held.  If nothing of that suffices, 'whole' keeps
      all of it, which leaves `align` little or no room to go on: such rows end
      with 'length' or 'too_long' and are rejected.
    temperature: Of a generated reply; 0 is greedy.
    top_p: Of a generated reply.
    max_tokens: Of a generated reply.
    verify: How continuations prove a cut.
    yardstick: On how much the judges are measured.
  """

  search: str
  splitter: str
  verdict: str
  threshold: float
  abstain: float
  abstained: str
  rule: str
  stable: int
  calibration: str
  calibration_rows: str | None
  calibration_fit: str
  none_enough: str
  too_long: str
  temperature: float
  top_p: float
  max_tokens: int
  verify: Verify
  yardstick: Yardstick


@dataclasses.dataclass(frozen=True)
class Align(Drawing):
  """How prefixes are continued.

  Attributes:
    mode: 'prefill' (the prefix opens the student's own turn) or 'draft' (the
      reference: it is quoted in the user's).
  """

  mode: str


@dataclasses.dataclass(frozen=True)
class Assemble:
  """What becomes training data.

  Attributes:
    keep: Of the correct completions of a question, the 'first' or 'all'.
    unverifiable: 'keep' lets rows without a checkable gold answer through.
    begin: Marker before the prefix.
    end: Marker after it.
    limit_s: Seconds that grading one answer may take.
  """

  keep: str
  unverifiable: str
  begin: str
  end: str
  limit_s: float


@dataclasses.dataclass(frozen=True)
class Sft:
  """How the student is fine-tuned.

  Attributes:
    method: 'lora' or 'full'.
    rank: Of the adapters.
    targets: The projections that get one: q, k, v, o, gate, up, down.
    quantize: 'int8' holds the frozen base of adapters in 8 bits.
    alpha: The adapters are scaled by alpha / rank.
    epochs: Times every example is seen.
    batch_size: Rows of one optimiser step, over all devices.
    max_tokens: Width of a row; longer examples are left out and counted.
    optim: See training/optim.py.
    weights: Loss weight by region: begin, prefix, end, continuation, turn_end.
    masked: Numbers of prefix sentences, from 0, that get weight 0.
    splitter: Cuts the prefix into sentences.
    remat: What of a layer the backward pass computes again, see
      models/remat.py.
    export_dtype: Of the exported weights.
  """

  method: str
  rank: int
  targets: Any
  quantize: str
  alpha: float
  epochs: int
  batch_size: int
  max_tokens: int
  optim: Mapping[str, Any]
  weights: Mapping[str, float]
  masked: Any
  splitter: str
  remat: str
  export_dtype: str


@dataclasses.dataclass(frozen=True)
class Grade:
  """How samples are graded.

  Attributes:
    limit_s: Seconds that grading one answer may take.
    resamples: Of the bootstrap.
  """

  limit_s: float
  resamples: int


@dataclasses.dataclass(frozen=True)
class Compute:
  """What bounds memory and sets cadences.

  It changes results by rounding at most; on a CPU, with matrices that are not
  tiny, by nothing.

  Attributes:
    num_rows: Rows decoded together.
    judge_tokens: Tokens that a group of devices with one copy of the rows
      judges together, padding included.
    memory_gib: Memory that judging may take on a device, weights included; 0
      finds out (the device's own; on a CPU the limit of its cgroup).
    shared_trunk: Whether a trace is read once for all its probes; False reads
      every prompt anew, to compare with.
    prefill_tokens: Prompt tokens that the sampler reads together, padding
      included: of one prompt per group of devices, hence never more than 512
      of each.
    group: Traces searched in lockstep; they are saved together.
    part_rows: Rows of a part file.
    rows_per_device: Training rows computed together on a device.
    loss_chunk: Positions of a row whose logits exist at a time; 0 for all.
    attention: Who computes attention: 'auto' (by platform), or a column of the
      table in models/kernels.py.
    workers: Processes that grade.
    log_every: Optimiser steps.
    save_every: Optimiser steps.
    save_every_s: Seconds.
    keep: Training checkpoints.
    profile_steps: The optimiser steps that are traced for XProf into
      sft/profile, as '10:12'; '' for none.
  """

  num_rows: int
  judge_tokens: int
  memory_gib: float
  shared_trunk: bool
  prefill_tokens: int
  group: int
  part_rows: int
  rows_per_device: int
  loss_chunk: int
  attention: str
  workers: int
  log_every: int
  save_every: int
  save_every_s: float
  keep: int
  profile_steps: str


@dataclasses.dataclass(frozen=True)
class Settings:
  """A whole config, checked."""

  seed: int
  mesh: Mapping[str, int]
  student: Model
  teacher: Model
  prompts: Prompts
  teach: Teach
  truncate: Truncate
  align: Align
  assemble: Assemble
  sft: Sft
  sample: Drawing
  grade: Grade
  report: Mapping[str, Any]
  compute: Compute
  benchmarks: Mapping[str, str]
