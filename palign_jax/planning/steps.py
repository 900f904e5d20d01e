"""The steps of a run, compiled with the shapes and places main would use.

judge    a chunk of every trunk of a group (`_grow` of judging/programs),
         and the widest forks for memory; not where replies judge
prefill  a chunk of a prompt on each group of devices (`read` of
         sampling/steps)
decode   one token of every row (`decode` of the same), and for memory a cache
         that is copied to its last, largest size
sft      an optimiser step (training/step); its memory is that of loading or
         export (planning/peaks.py) where these take more

All but the last run on the mesh of one host, as each host does by itself.  The
teacher's prefill and decode are called teach_prefill and teach_decode.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np

from palign_jax.core import config as config_lib, errors
from palign_jax.judging import programs as programs_lib, trunk_scorer
from palign_jax.models import decoder, kernels, lora, presets, quantization
from palign_jax.parallel import local, memory, mesh as mesh_lib, rules
from palign_jax.planning import cases, flops, measure, peaks, roofline
from palign_jax.sampling import buckets, logits, steps as steps_lib
from palign_jax.stages import judges, settings as settings_lib, sft as sft_stage
from palign_jax.training import loss, optim, step as step_lib

STUDENT = ('judge', 'prefill', 'decode', 'sft')
TEACHER = ('teach_prefill', 'teach_decode')
PROMPT = 512  # Tokens that a question takes with its template, about.
_SHARE = 0.9  # Of the memory, that judging may take (parallel/memory.py).
# What models/remat.py computes again.
_AGAIN = {
    'none': flops.Again(products=False, attention=False),
    'dots': flops.Again(products=False, attention=False),
    'save_attention': flops.Again(products=True, attention=False),
    'full': flops.Again(products=True, attention=True),
}


@dataclasses.dataclass(frozen=True)
class Step:
  """What a step takes, all of it on one device.

  Attributes:
    name: See above.
    held: Bytes of the arguments by kind: weights, optimizer, kv.
    need: Bytes in all.
    capacity: Bytes that there are for a program.
    model_flops: What the mathematics asks for.
    flops: What is executed.
    collective_bytes: Sent, by mesh axis; None if unknown.
    roofline: What bounds its time.
    tokens: That the step reads or draws on all hosts, padding included.
    rows: That are computed together on all hosts.
    peak: FLOP/s of the device.
    note: What to tell of how this was found out.
  """

  name: str
  held: Mapping[str, int]
  need: int
  capacity: int
  model_flops: float
  flops: float
  collective_bytes: Mapping[str, int] | None
  roofline: roofline.Roofline
  tokens: int
  rows: int
  peak: float
  note: str = ''

  @property
  def fits(self) -> bool:
    """Whether a device's memory holds it."""
    return self.need <= self.capacity

  @property
  def hbm_bytes(self) -> dict[str, int]:
    """Bytes by kind; activations are all that is no argument."""
    kinds = {k: self.held.get(k, 0) for k in ('weights', 'optimizer', 'kv')}
    rest = max(self.need - sum(kinds.values()), 0)
    total = sum(kinds.values()) + rest
    return {**kinds, 'activations': rest, 'total': total}

  @property
  def mfu_bound(self) -> float:
    """The share of the peak that the model's FLOPs can be, at most."""
    return self.model_flops / (self.roofline.seconds * self.peak)

  @property
  def tokens_per_s(self) -> float:
    """Of all hosts together, at most."""
    return self.tokens / self.roofline.seconds


def names(case: cases.Case) -> list[str]:
  """Returns the steps that a run has."""
  teacher = TEACHER if case.teacher else ()
  student = STUDENT if case.student else ()
  if not judges.has_labels(case.settings.truncate):
    student = [name for name in student if name != 'judge']
  return [*teacher, *student]


def make(case: cases.Case, name: str) -> Step:
  """Compiles a step and returns what it takes.

  Raises:
    ConfigError: If main would refuse the config.
  """
  if name == 'judge':
    return _judge(case)
  if name == 'sft':
    return _sft(case)
  preset = case.teacher if name in TEACHER else case.student
  config = case.settings.teacher if name in TEACHER else case.settings.student
  dtype = jnp.dtype(config.dtype)
  return _Sampling(case, preset, dtype, name).step()


def _step(
    case: cases.Case,
    name: str,
    *,
    held: Mapping[str, int],
    measured: measure.Measured,
    work: flops.Work,
    traffic: float,
    tokens: int,
    rows: int,
    mesh: Mesh | None = None,
) -> Step:
  """Returns a step, its work divided among the devices.

  Args:
    case: The run.
    name: Of the step.
    held: Bytes by kind.
    measured: Of its program.
    work: On the mesh.
    traffic: Bytes of a device's memory.
    tokens: On the mesh.
    rows: On the mesh.
    mesh: That the program runs on; None is a host's, and all hosts run it.
  """
  chip, mesh = case.topology.chip, mesh or case.mesh
  num, times = mesh.size, case.train_mesh.size // mesh.size
  bounds = roofline.bound(
      case.topology,
      mesh,
      flops=work.executed / num,
      hbm_bytes=traffic,
      collective_bytes=measured.collective_bytes or {},
  )
  return Step(
      name=name,
      held=held,
      need=measured.need,
      capacity=chip.usable,
      model_flops=work.model / num,
      flops=work.executed / num,
      collective_bytes=measured.collective_bytes,
      roofline=bounds,
      tokens=tokens * times,
      rows=rows * times,
      peak=chip.peak / chip.devices,
      note=measured.note,
  )


def _ints(case: cases.Case, *shape: int, dtype=jnp.int32):
  where = mesh_lib.rows(case.mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _cache(case: cases.Case, model, num_rows: int, capacity: int, dtype):
  make = lambda: decoder.new_cache(model, num_rows, capacity, dtype)
  where = jax.sharding.NamedSharding(case.mesh, decoder.CACHE)
  shapes = jax.eval_shape(make)
  return cases.placed(shapes, jax.tree.map(lambda _: where, shapes))


def longest_trace(case: cases.Case) -> int:
  """Returns the tokens of the longest trace that is used, with its question."""
  t = case.settings
  return min(t.teach.max_tokens + PROMPT, case.student.max_positions)


def _judge(case: cases.Case) -> Step:
  s, model = case.settings, case.student.model
  dtype = jnp.dtype(s.student.dtype)
  params = cases.unstacked(cases.weights(case.student, dtype, case.mesh))
  usable = int(_SHARE * case.topology.chip.usable)
  budget = int(s.compute.memory_gib * memory.GIB) or usable
  scorer = trunk_scorer.TrunkScorer(
      params,
      model,
      mesh=case.mesh,
      dtype=dtype,
      budget=budget,
      judge_tokens=s.compute.judge_tokens,
      attention=s.compute.attention,
  )
  size = programs_lib.capacity(longest_trace(case))
  wanted = -(-s.compute.group // case.shards)
  note = ''
  try:
    num = scorer.fitting(size, min(wanted, 64))
  except errors.ConfigError as e:
    num, note = 1, str(e)
  shape = dict(case.mesh.shape)
  total = case.shards * (num + 1)  # One of each is spare.
  weights = memory.per_device(params)
  kv = memory.per_device(_cache(case, model, total, size, dtype))
  try:
    trunks = measure.of(scorer.programs.greediest_trunks(num, size), shape)
  except memory.OutOfMemory as e:
    trunks = measure.refused(e, weights + kv)
  need = trunks.need
  if not note and not scorer.holds_any_fork(num, size):
    forks = scorer.programs.greediest_forks(num, size)
    need = max(need, *(measure.of(p, shape).need for p in forks))
  rows, width = scorer.programs.chunk_shape(num)
  tokens = rows * width
  cached = rows * size // 2
  return _step(
      case,
      'judge',
      held={'weights': weights, 'kv': kv},
      measured=dataclasses.replace(trunks, need=need, note=note or trunks.note),
      work=flops.reading(model, tokens, size / 2, 0),
      traffic=_reading_traffic(case, model, tokens, cached),
      tokens=tokens,
      rows=rows,
  )


def _reading_traffic(case, model, tokens: int, cached: int) -> float:
  """Returns the bytes that a device moves to read tokens beside a cache."""
  share = flops.reading_traffic(model, tokens, cached) / case.mesh.size
  return flops.weight_bytes(model) / case.mesh.shape['tensor'] + share


class _Sampling:
  """Prefill and decode of one model."""

  def __init__(
      self,
      case: cases.Case,
      preset: presets.Preset,
      dtype: jnp.dtype,
      name: str,
  ):
    self._case, self._preset, self._name = case, preset, name
    self._model, self._dtype = preset.model, dtype
    self._kind = name.removeprefix('teach_')
    compute = case.settings.compute
    local.check_rows(compute.num_rows, case.mesh)
    self._rows = compute.num_rows
    self._chunk_limit = compute.prefill_tokens // case.shards
    self._drawings = self._of(case.settings)
    self._spare = buckets.CHUNKS[-1] if case.shards > 1 else 0
    self._params = cases.unstacked(cases.weights(preset, dtype, case.mesh))

  def _of(self, s: settings_lib.Settings) -> list[tuple[int, Any]]:
    """Returns (tokens of a prompt, how is drawn), for all that is drawn."""
    if self._name.startswith('teach_'):
      return [(PROMPT, s.teach)]
    return [(longest_trace(self._case), s.align), (PROMPT, s.sample)]

  def _capacities(self) -> tuple[int, int]:
    """Returns the slots of the largest cache, and of the one before."""
    most = self._preset.max_positions
    longest = 0
    for prompt, drawing in self._drawings:
      prompt = min(prompt, most - 1)
      total = min(prompt + drawing.max_tokens, most)
      read = buckets.chunks_end(prompt - 1, self._chunk_limit)
      longest = max(longest, read + 1, total + steps_lib.STEPS + 1)
    last = buckets.capacity(longest + self._spare)
    step = last * 3 // 4  # One and a half powers of two, and two.
    before = step if buckets.capacity(step) == step else last * 2 // 3
    return last, before

  def step(self) -> Step:
    """Compiles the step."""
    case, model, rows = self._case, self._model, self._rows
    capacity, before = self._capacities()
    cache = _cache(case, model, rows, capacity, self._dtype)
    prefill = self._kind == 'prefill'
    lower = self._read if prefill else self._decode
    shape = dict(case.mesh.shape)
    weights, kv = map(memory.per_device, (self._params, cache))
    measured = measure.compiled(lambda: lower(cache), shape, weights + kv)
    if not prefill:  # The cache is copied when it grows.
      copied = weights + kv + kv * before // capacity
      need = max(measured.need, copied)
      measured = dataclasses.replace(measured, need=need)
    tokens = self._chunk() * case.shards if prefill else rows
    cached = capacity // 2 * (case.shards if prefill else rows)
    return _step(
        case,
        self._name,
        held={'weights': weights, 'kv': kv},
        measured=measured,
        work=flops.reading(
            model, tokens, capacity / 2, 0 if prefill else tokens
        ),
        traffic=_reading_traffic(case, model, tokens, cached),
        tokens=tokens,
        rows=case.shards if prefill else rows,
    )

  def _chunk(self) -> int:
    return buckets.chunk(buckets.CHUNKS[-1], self._chunk_limit)

  def _static(self) -> dict[str, Any]:
    case = self._case
    return dict(
        config=self._model,
        backend=case.attention,
        dtype=self._dtype,
        lora_scale=0.0,
    )

  def _read(self, cache) -> jax.stages.Lowered:
    case = self._case
    D = case.shards
    return steps_lib.read.lower(
        self._params,
        cache,
        _ints(case, D, self._chunk()),
        *(_ints(case, D) for _ in range(3)),
        **self._static(),
    )

  def _decode(self, cache) -> jax.stages.Lowered:
    case, B, V = self._case, self._rows, self._model.vocab_size
    drawing = self._drawings[0][1]
    seen = None
    if any(d.repetition_penalty != 1 for _, d in self._drawings):
      seen = _ints(case, B, V, dtype=jnp.bool_)
    return steps_lib.decode.lower(
        self._params,
        cache,
        seen,
        *(_ints(case, B) for _ in range(4)),
        _ints(case, B, 2, dtype=jnp.uint32),
        np.zeros(2, np.int32),
        np.int32(1),
        sampling=logits.SamplingConfig(
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
            repetition_penalty=drawing.repetition_penalty,
        ),
        vocab_limit=V,
        **self._static(),
    )


def _sft(case: cases.Case) -> Step:
  s, c, model = case.settings.sft, case.settings.compute, case.student.model
  mesh = case.train_mesh
  sft_stage.check_sizes(case.settings, mesh, case.student.max_positions)
  num = step_lib.num_microbatches(s.batch_size, c.rows_per_device, mesh)
  frozen, trained = _weights(case)
  lower, moments = _optimiser_step(case, num, frozen, trained)
  weights = memory.per_device(frozen) + memory.per_device(trained)
  tokens = s.batch_size * s.max_tokens
  again = _AGAIN[s.remat]
  # Weights are read forward, backward and where layers are recomputed; what is
  # trained is read and written once more, with its moments.
  passes = (2 + again.products) * num
  each = 1 if s.quantize == 'int8' else 2
  moved = passes * flops.weight_bytes(model, each) / mesh.shape['tensor']
  moved += 2 * (memory.per_device(trained) + moments)
  moved += flops.training_traffic(model, tokens, again) / mesh.size
  held = {'weights': weights, 'optimizer': moments}
  measured = measure.compiled(
      lower, dict(mesh.shape), weights + moments, case.topology.num_slices
  )
  name, most = max(
      peaks.of(case, frozen, trained).items(), key=lambda item: item[1]
  )
  if most > measured.need:
    held = {'weights': most}
    note = f'{name} take most; a step {measured.need / memory.GIB:.2f} GiB'
    measured = dataclasses.replace(measured, need=most, note=note)
  return _step(
      case,
      'sft',
      mesh=mesh,
      held=held,
      measured=measured,
      work=flops.training(
          model,
          tokens=tokens,
          length=s.max_tokens,
          adapters=_adapter_weights(trained) if s.method == 'lora' else 0,
          again=again,
      ),
      traffic=moved,
      tokens=tokens,
      rows=s.batch_size,
  )


def _optimiser_step(
    case: cases.Case, num: int, frozen: decoder.Params, trained: decoder.Params
) -> tuple[Callable[[], jax.stages.Lowered], int]:
  """Returns what makes the program, and the bytes of the moments on a device.

  Args:
    case: The run.
    num: Microbatches of a step.
    frozen: Shapes and places of frozen weights.
    trained: And of those that are trained.
  """
  s, mesh = case.settings.sft, case.train_mesh
  optim_config = config_lib.build(
      optim.OptimConfig, dict(s.optim), at='config.sft.optim'
  )
  rate = optim.schedule(optim_config, 100)
  optimizer = optim.make(optim_config, rate)
  pure = step_lib.make(
      case.student.model,
      loss.LossConfig(
          dtype=case.settings.student.dtype,
          remat=s.remat,
          chunk_size=case.settings.compute.loss_chunk,
          lora_scale=s.alpha / s.rank,
          attention=kernels.Backend(case.settings.compute.attention, mesh),
      ),
      optimizer,
      rate,
      optim_config.clip_norm,
      jax.tree.map(lambda x: x.sharding, trained),
  )
  state = step_lib.abstract(trained, optimizer)
  batch = step_lib.abstract_batch(num, s.batch_size // num, s.max_tokens, mesh)
  lower = lambda: step_lib.jit(pure, state).lower(frozen, state, batch)
  return lower, memory.per_device(state.opt_state)


def _weights(case: cases.Case) -> tuple[decoder.Params, decoder.Params]:
  """Returns what is frozen and what is trained, as stages/sft.py has it."""
  s, model, mesh = case.settings.sft, case.student.model, case.train_mesh
  if s.method == 'full':
    return {}, cases.weights(case.student, jnp.float32, mesh)
  make = lambda: lora.init(model, s.rank, jax.random.key(0), targets=s.targets)
  shapes = jax.eval_shape(make)
  axes = lora.logical_axes(model, s.rank, s.targets)
  where = rules.tree_shardings(shapes, axes, mesh)
  dtype = jnp.dtype(case.settings.student.dtype)
  frozen = cases.weights(case.student, dtype, mesh)
  if s.quantize == 'int8':
    small = quantization.abstract(frozen)
    axes = decoder.logical_axes(model, quantized=True)
    frozen = cases.placed(small, rules.tree_shardings(small, axes, mesh))
  return frozen, cases.placed(shapes, where)


def _adapter_weights(adapters: Any) -> int:
  return sum(math.prod(x.shape) for x in jax.tree.leaves(adapters))
