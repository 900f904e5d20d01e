"""Bytes that a compiled program sends, read off its partitioned HLO.

The compiler's own count sees the body of a loop once.  Here each computation
counts as often as it runs: a loop's trips follow from its bound and increment;
one whose trips depend on data counts once, so that what comes out is per trip
(the decoder's loop over tokens is the only one that communicates).

Collectives are told by mesh axis: from a collective's groups follows along
which axes its devices differ.  Bytes are those that one device sends: a ring's
share, (n - 1) / n of what is gathered or scattered among n devices, twice that
for an all-reduce, all of what is permuted.

A program for several slices is that of one of them: what goes to the others is
handed to the host, which sends it over the data-centre network.
"""

from collections.abc import Iterator, Mapping, Sequence, Set
import dataclasses
import functools
import math
import re

import numpy as np

_SIZES = {
    **dict.fromkeys(('pred', 's8', 'u8', 'f8e4m3fn', 'f8e5m2'), 1),
    **dict.fromkeys(('s16', 'u16', 'f16', 'bf16'), 2),
    **dict.fromkeys(('s32', 'u32', 'f32'), 4),
    **dict.fromkeys(('s64', 'u64', 'f64', 'c64'), 8),
}
_SHAPE = re.compile(r'\b([a-z]+[0-9a-z]*)\[([\d,]*)\]')
_HEAD = re.compile(r'^(ENTRY )?%?([\w.-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(r'^\s+(?:ROOT )?%?([\w.-]+) = (.*)$')
_KINDS = (
    'all-gather',
    'all-reduce',
    'reduce-scatter',
    'all-to-all',
    'collective-permute',
    'ragged-all-to-all',
    'collective-broadcast',
)
DCN = 'dcn'  # What is sent to other slices, in place of a mesh axis.
# How a transfer between slices is written, and which slices take part.
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]+)\}')
_OPCODE = re.compile(r'(?:^|[\s)}\]])([a-z][\w-]*)\((.*)$')
_CALLS = re.compile(
    r'(calls|to_apply|body|condition|branch_computations|true_computation'
    r'|false_computation)=(\{[^}]*\}|%?[\w.-]+)'
)

Shape = Mapping[str, int]  # Size of each mesh axis, in order.


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line of HLO: `name = result opcode(rest`."""

  name: str
  result: str
  opcode: str
  rest: str

  @functools.cached_property
  def operands(self) -> list[str]:
    """Names of its operands."""
    depth, end = 1, len(self.rest)
    for i, c in enumerate(self.rest):
      depth += (c in '({[') - (c in ')}]')
      if depth == 0:
        end = i
        break
    return re.findall(r'%([\w.-]+)', self.rest[:end])

  @property
  def called(self) -> dict[str, list[str]]:
    """The computations that it calls, by role."""
    return {
        role: re.findall(r'[\w.-]+', names.replace('%', ''))
        for role, names in _CALLS.findall(self.rest)
    }

  def attribute(self, name: str) -> str | None:
    """Returns the text of an attribute of one word, or None."""
    found = re.search(rf'\b{name}=([\w.-]+)', self.rest)
    return found and found[1]


@dataclasses.dataclass(frozen=True)
class Module:
  """Computations by name, and which one is the entry."""

  computations: Mapping[str, Mapping[str, Instruction]]
  roots: Mapping[str, str]
  entry: str


def parse(text: str) -> Module:
  """Returns the computations of a module, as `Compiled.as_text` prints it."""
  computations: dict[str, dict[str, Instruction]] = {}
  roots, entry, inside = {}, '', None
  for line in text.splitlines():
    if inside is None:
      if head := _HEAD.match(line):
        inside = head[2]
        computations[inside] = {}
        entry = inside if head[1] else entry
    elif line == '}' or line.startswith('}, execution_thread='):
      inside = None
    elif found := _INSTRUCTION.match(line):
      op = _OPCODE.search(found[2])
      if op:
        result = found[2][: op.start(1)]
        computations[inside][found[1]] = Instruction(
            found[1], result, op[1], op[2]
        )
        if line.lstrip().startswith('ROOT'):
          roots[inside] = found[1]
  return Module(computations, roots, entry)


def collective_bytes(
    text: str, shape: Shape, num_slices: int = 1
) -> dict[str, int]:
  """Returns the bytes that a device sends along each mesh axis.

  Args:
    text: The partitioned, optimised HLO.
    shape: Sizes of the mesh's axes; devices are numbered in its order.
    num_slices: Over how many slices its first axis goes.

  Returns:
    Bytes by axis, or by 'a+b' where devices differ along two, and to other
    slices as `DCN`; only what is not zero.
  """
  module = parse(text)
  first, *rest = shape
  shape = {first: shape[first] // num_slices} | {a: shape[a] for a in rest}
  totals: dict[str, float] = {}
  for instruction, times in _runs(module, module.entry, 1.0, frozenset()):
    axes, num_bytes = _sent(instruction, shape)
    if axes and num_bytes:
      totals[axes] = totals.get(axes, 0.0) + times * num_bytes
  return {axes: round(total) for axes, total in sorted(totals.items())}


def _runs(
    module: Module, name: str, times: float, begun: Set[str]
) -> Iterator[tuple[Instruction, float]]:
  """Yields every collective that a computation runs, and how often.

  A collective that runs beside other work is in several fusions, its start,
  its middle (perhaps within a loop) and its end, all with one channel.

  Args:
    module: The program.
    name: The computation.
    times: How often it runs.
    begun: Channels that were begun in fusions before.
  """
  begun = set(begun)
  for instruction in module.computations[name].values():
    is_send = instruction.opcode == 'send' and 'megascale' in instruction.rest
    if is_send or instruction.opcode.removesuffix('-start') in _KINDS:
      yield instruction, times
    called = instruction.called
    if instruction.opcode == 'while':
      trips = times * _trips(module, name, instruction)
      yield from _runs(module, called['body'][0], trips, begun)
    elif instruction.opcode == 'fusion':
      (fused,) = called['calls']
      for inner, inner_times in _runs(module, fused, times, begun):
        channel = inner.attribute('channel_id')
        if channel is None or channel not in begun:
          yield _scattered(module, fused, inner), inner_times
        begun.add(channel)
    elif instruction.opcode in ('call', 'conditional', 'async-start'):
      for role in ('to_apply', 'calls', 'branch_computations'):
        for inner in called.get(role, ()):
          yield from _runs(module, inner, times, begun)


def _scattered(module: Module, name: str, inner: Instruction) -> Instruction:
  """Returns a fusion's collective; a sum of which it keeps a part is scattered.

  It is how a TPU writes a reduce-scatter: `fusion(...), kind=kCustom,
  calls=%all-reduce-scatter`.
  """
  root = module.computations[name].get(module.roots.get(name, ''))
  is_part = root is not None and root.opcode == 'dynamic-slice'
  if inner.opcode != 'all-reduce' or not is_part:
    return inner
  return dataclasses.replace(inner, opcode='reduce-scatter', result=root.result)


def _trips(module: Module, parent: str, loop: Instruction) -> int:
  """Returns how often a loop's body runs; 1 if that depends on data."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
  if known:
    return int(known[1])
  (condition,), (body,) = loop.called['condition'], loop.called['body']
  bound = _bound(module, condition)
  if bound is None:
    return 1
  index, limit, inclusive = bound
  begin = _number(module, parent, _element(module, parent, loop, index))
  step = _increment(module, body, index)
  if begin is None or not step:
    return 1
  return max(0, -(-(limit + inclusive - begin) // step))


def _bound(module: Module, name: str) -> tuple[int, int, int] | None:
  """Returns (element of the state, limit, whether it is reached)."""
  at = module.computations[name]
  compare = at[module.roots[name]]
  if compare.opcode == 'fusion':  # Its operands are the fusion's parameters.
    (inner,) = compare.called['calls']
    outer, at_inner = compare.operands, module.computations[inner]
    compare = at_inner[module.roots[inner]]
    names = [
        outer[int(at_inner[x].rest.split(')')[0])]
        if at_inner[x].opcode == 'parameter'
        else x
        for x in compare.operands
    ]
    at = {**at_inner, **at}
  else:
    names = compare.operands
  direction = compare.attribute('direction')
  if compare.opcode != 'compare' or direction not in ('LT', 'LE'):
    return None
  left, right = (at.get(x) for x in names[:2])
  if not left or not right or left.opcode != 'get-tuple-element':
    return None
  if right.opcode != 'constant':
    return None
  limit = right.rest.split(')')[0]
  index = left.attribute('index')
  if not limit.lstrip('-').isdigit() or index is None:
    return None
  return int(index), int(limit), int(direction == 'LE')


def _element(
    module: Module, parent: str, loop: Instruction, index: int
) -> str | None:
  """Returns the name of an element of what goes into a loop."""
  source = module.computations[parent].get(loop.operands[0])
  if source is None or source.opcode != 'tuple':
    return None
  return source.operands[index]


def _number(module: Module, parent: str, name: str | None) -> int | None:
  """Returns the whole number that an instruction is, if it is constant."""
  at = module.computations[parent]
  while name in at and at[name].opcode in ('copy', 'bitcast', 'convert'):
    name = at[name].operands[0]
  if name not in at or at[name].opcode != 'constant':
    return None
  text = at[name].rest.split(')')[0]
  return int(text) if text.lstrip('-').isdigit() else None


def _increment(module: Module, body: str, index: int) -> int | None:
  """Returns what a loop's body adds to an element of its state."""
  at = module.computations[body]
  root = at[module.roots[body]]
  if root.opcode != 'tuple':
    return None
  total, name = 0, root.operands[index]
  while name in at:
    instruction = at[name]
    if instruction.opcode in ('copy', 'bitcast', 'convert'):
      name = instruction.operands[0]
      continue
    if instruction.opcode == 'get-tuple-element':
      return total or None
    if instruction.opcode == 'fusion':
      added = _added(module, instruction)
    elif instruction.opcode == 'add':
      added = [_number(module, body, x) for x in instruction.operands]
      added = next((x for x in added if x is not None), None)
    else:
      return None
    if added is None:
      return None
    total += added
    name = next(
        (x for x in instruction.operands if _number(module, body, x) is None),
        None,
    )
  return None


def _added(module: Module, fusion: Instruction) -> int | None:
  """Returns the constant that a fusion of one addition adds."""
  (inner,) = fusion.called['calls']
  at = module.computations[inner]
  root = at[module.roots[inner]]
  if root.opcode != 'add':
    return None
  numbers = [_number(module, inner, x) for x in root.operands]
  return next((x for x in numbers if x is not None), None)


def _sent(instruction: Instruction, shape: Shape) -> tuple[str, float]:
  """Returns the axes of a collective, and what a device sends in it."""
  opcode = instruction.opcode
  if opcode == 'send':
    return DCN, _across(instruction)
  kind = opcode.removesuffix('-start')
  sizes = _result_bytes(instruction.result)
  groups = _groups(instruction.rest, math.prod(shape.values()))
  n = max(map(len, groups), default=1)
  if kind == 'collective-permute':
    pairs = [pair for pair in groups if pair[0] != pair[1]]
    return _axes(pairs, shape), float(sizes[0] if pairs else 0)
  if opcode == 'all-gather-start':  # The operands, then the results.
    sizes = sizes[len(sizes) // 2 :]
  size = float(sum(sizes))
  share = (n - 1) / n
  factors = {'all-reduce': 2 * share, 'reduce-scatter': n - 1}
  return _axes(groups, shape), size * factors.get(kind, share)


def _across(send: Instruction) -> float:
  """Returns the bytes that a device's data takes to other slices."""
  size = float(_result_bytes(send.result)[0])
  slices, kind = _SLICES.search(send.rest), _TRANSFER.search(send.rest)
  n = len(slices[1].split(',')) if slices else 2
  factors = {
      'ALL_REDUCE': 2 * (n - 1) / n,
      'REDUCE_SCATTER': (n - 1) / n,
      'ALL_TO_ALL': (n - 1) / n,
      'ALL_GATHER': n - 1,
  }
  return size * factors.get(kind[1] if kind else '', 1)


def _result_bytes(text: str) -> list[int]:
  """Returns the bytes of every array in a result's type."""
  sizes = []
  for kind, dims in _SHAPE.findall(text):
    if kind in _SIZES:
      numbers = [int(x) for x in dims.split(',') if x]
      sizes.append(_SIZES[kind] * math.prod(numbers))
  return sizes


def _axes(groups: Sequence[Sequence[int]], shape: Shape) -> str:
  """Returns along which mesh axes the devices of a group differ."""
  sizes = tuple(shape.values())
  differ = np.zeros(len(sizes), bool)
  for group in groups:
    places = np.array(np.unravel_index(list(group), sizes))
    differ |= (places != places[:, :1]).any(axis=1)
  return '+'.join(a for a, d in zip(shape, differ, strict=True) if d)


def _groups(rest: str, num: int) -> list[list[int]]:
  """Returns the groups of devices of a collective, in any notation."""
  pairs = r'source_target_pairs=\{((?:\{[\d,]+\},?)*)\}'
  lists = r'replica_groups=\{((?:\{[\d,]+\},?)*)\}'
  for pattern in (pairs, lists):
    if found := re.search(pattern, rest):
      inner = re.findall(r'\{([\d,]+)\}', found[1])
      if inner:
        return [[int(x) for x in g.split(',')] for g in inner]
  iota = r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?'
  if found := re.search(iota, rest):
    shape, source = (_ints(found[i]) for i in (1, 2))
    ids = np.arange(math.prod(source)).reshape(source)
    if found[3]:
      ids = ids.transpose(_ints(found[3]))
    return ids.reshape(shape).tolist()
  named = r'replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}'
  if found := re.search(named, rest):
    sizes = {a: int(n) for a, n in re.findall(r"'(\w+)'=(\d+)", found[1])}
    return _named(sizes, found[2])
  return [list(range(num))]


def _ints(text: str) -> list[int]:
  return [int(x) for x in text.split(',')]


def _named(sizes: Mapping[str, int], text: str) -> list[list[int]]:
  """Returns groups that are given as axes, or parts of axes, of a mesh.

  A part is written 'axis':(before)size: the axis is split into before, size
  and the rest, and the second of these is meant.
  """
  parts = {
      axis: (int(before or 1), int(size or sizes[axis]))
      for axis, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", text)
  }
  dims, inside, outside = [], [], []
  for axis, size in sizes.items():
    before, middle = parts.get(axis, (1, 1))
    inside.append(len(dims) + 1)
    outside += [len(dims), len(dims) + 2]
    dims += [before, middle, size // (before * middle)]
  ids = np.arange(math.prod(dims)).reshape(dims)
  ids = ids.transpose(outside + inside)
  return ids.reshape(-1, math.prod(dims[i] for i in inside)).tolist()
