"""What a program sends is what its collectives send, as often as they run."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from palign_jax.parallel import mesh as mesh_lib
from palign_jax.planning import hlo

SHAPE = {'data': 2, 'fsdp': 4, 'tensor': 2}


def module(*lines: str, more: str = '') -> str:
  """A program whose entry has these lines."""
  body = ''.join(f'  {line}\n' for line in lines)
  return (
      f'HloModule m\n\n{more}ENTRY %main (p: f32[8]) -> f32[8] {{\n{body}}}\n'
  )


def gather(groups: str, result: str = 'bf16[64,8]{1,0:T(8,128)(2,1)S(1)}'):
  return (
      f'ROOT %g.1 = {result} all-gather(%p), channel_id=7,'
      f' replica_groups={groups}, dimensions={{0}}, use_global_device_ids=true'
  )


BYTES = 64 * 8 * 2


@pytest.mark.parametrize(
    'groups, axes, n',
    [
        ('{{0,2,4,6},{1,3,5,7},{8,10,12,14},{9,11,13,15}}', 'fsdp', 4),
        (
            '{{0,1},{2,3},{4,5},{6,7},{8,9},{10,11},{12,13},{14,15}}',
            'tensor',
            2,
        ),
        ('[8,2]<=[2,8]T(1,0)', 'data', 2),
        ('[8,2]<=[16]', 'tensor', 2),
        ('[4,4]<=[2,4,2]T(0,2,1)', 'fsdp', 4),
        ('[2,8]<=[16]', 'fsdp+tensor', 8),
        ("mesh['a'=2,'b'=4,'c'=2] {'b'}", 'fsdp', 4),
        ("mesh['a'=2,'b'=4,'c'=2] {'a','c'}", 'data+tensor', 4),
        ("mesh['a'=16] {'a':(2)4}", 'fsdp', 4),
        ("mesh['a'=16] {'a'}", 'data+fsdp+tensor', 16),
        ('{}', 'data+fsdp+tensor', 16),
    ],
)
def test_groups_are_told_by_mesh_axis(groups, axes, n):
  got = hlo.collective_bytes(module(gather(groups)), SHAPE)
  assert got == {axes: round(BYTES * (n - 1) / n)}


@pytest.mark.parametrize(
    'line, num_bytes',
    [
        ('%x = f32[10]{0} all-reduce(%p)', 2 * 40 * 3 / 4),
        ('%x = f32[10]{0} reduce-scatter(%p)', 40 * 3),
        ('%x = f32[12]{0} all-to-all(%p)', 48 * 3 / 4),
        ('%x = (f32[4]{0}, bf16[4]{0}) all-reduce(%p, %q)', 2 * 24 * 3 / 4),
        ('%x = (f32[4]{0}, f32[16]{0}) all-gather-start(%p)', 64 * 3 / 4),
        ('%x = f32[16]{0} all-gather-done(%p)', 0),
        ('%x = f32[16]{0} add(%p, %all-gather.1)', 0),
    ],
)
def test_a_ring_sends_its_share(line, num_bytes):
  text = module(f'{line}, replica_groups=[4,4]<=[2,4,2]T(0,2,1)')
  want = {'fsdp': num_bytes} if num_bytes else {}
  assert hlo.collective_bytes(text, SHAPE) == want


def test_a_loop_after_a_fusion_counts_its_trips():
  fused = """%fused (q: f32[8]) -> f32[8] {
  %q = f32[8] parameter(0)
  ROOT %double = f32[8] add(%q, %q)
}

"""
  text = module(
      '%begin = u32[] constant(0)',
      '%twice = f32[8] fusion(%p), kind=kLoop, calls=%fused',
      '%t = (u32[], f32[8]) tuple(%begin, %twice)',
      'ROOT %w = (u32[], f32[8]) while(%t), condition=%cond, body=%body',
      more=LOOP + fused,
  )
  one = 2 * 32 * 15 / 16
  assert hlo.collective_bytes(text, SHAPE) == {'data+fsdp+tensor': 4 * one}


def test_a_sum_of_which_a_part_is_kept_is_scattered():
  groups = 'replica_groups=[4,4]<=[2,4,2]T(0,2,1)'
  more = f"""%all-reduce-scatter (q: f32[16,8]) -> f32[4,8] {{
  %q = f32[16,8] parameter(0)
  %sum = f32[16,8] all-reduce(%q), channel_id=3, {groups}, to_apply=%add
  %at = s32[] constant(0)
  ROOT %part = f32[4,8] dynamic-slice(%sum, %at, %at)
}}

"""
  line = (
      'ROOT %f = f32[4,8] fusion(%p), kind=kCustom, calls=%all-reduce-scatter'
  )
  got = hlo.collective_bytes(module(line, more=more), SHAPE)
  assert got == {'fsdp': 4 * 8 * 4 * 3}


def send(kind: str, slices: str) -> str:
  return (
      '%s = (bf16[8,4]{1,0}, u32[], token[]) send(%p, %t), channel_id=2,'
      ' is_host_transfer=true, frontend_attributes={'
      '_xla_host_transfer_handler_name="xla_megascale_runtime",'
      f'_xla_megascale_target="{{{slices}}}x{{0:3}}",'
      f'_xla_megascale_transfer_type="{kind}"}}'
  )


@pytest.mark.parametrize(
    'kind, slices, num_bytes',
    [
        ('ALL_REDUCE', '1,2', 64),
        ('ALL_REDUCE', '1,2,3,4', 96),
        ('REDUCE_SCATTER', '1,2', 32),
        ('ALL_GATHER', '1,2,3', 128),
        ('ONE_TO_ONE', '1,2', 64),
    ],
)
def test_what_goes_to_other_slices(kind, slices, num_bytes):
  got = hlo.collective_bytes(module(send(kind, slices)), SHAPE, 2)
  assert got == {hlo.DCN: num_bytes}


def test_a_program_of_two_slices_numbers_the_devices_of_one():
  groups = '{{0,2,4,6},{1,3,5,7}}'
  got = hlo.collective_bytes(module(gather(groups)), SHAPE, 2)
  assert got == {'fsdp': BYTES * 3 / 4}
  # All of a slice, where no groups are named.
  got = hlo.collective_bytes(module(gather('{}')), SHAPE, 2)
  assert got == {'fsdp+tensor': BYTES * 7 / 8}


def test_what_is_permuted_is_sent_whole():
  pairs = ','.join(f'{{{i},{i ^ 2}}}' for i in range(16))
  line = (
      '%x = (bf16[4,2]{1,0:T(8,128)(2,1)}, bf16[4,2]{1,0}, u32[]{:S(2)})'
      f' collective-permute-start(%p), source_target_pairs={{{pairs}}}'
  )
  assert hlo.collective_bytes(module(line), SHAPE) == {'fsdp': 16}


LOOP = """%cond (s: (u32[], f32[8])) -> pred[] {
  %s = (u32[], f32[8]) parameter(0)
  %limit = u32[]{:T(128)} constant(8)
  %i = u32[] get-tuple-element(%s), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (s: (u32[], f32[8])) -> (u32[], f32[8]) {
  %s = (u32[], f32[8]) parameter(0)
  %i = u32[] get-tuple-element(%s), index=0
  %x = f32[8] get-tuple-element(%s), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i, %two)
  %y = f32[8] all-reduce(%x), replica_groups=[1,16]<=[16], to_apply=%cond
  ROOT %t = (u32[], f32[8]) tuple(%next, %y)
}

"""


def loop(begin: str) -> str:
  return module(
      f'%begin = u32[] {begin}',
      '%t = (u32[], f32[8]) tuple(%begin, %p)',
      'ROOT %w = (u32[], f32[8]) while(%t), condition=%cond, body=%body',
      more=LOOP,
  )


def test_a_loop_counts_as_often_as_it_runs():
  once = 2 * 32 * 15 / 16
  assert hlo.collective_bytes(loop('constant(4)'), {'x': 16}) == {'x': 2 * once}
  assert hlo.collective_bytes(loop('constant(1)'), {'x': 16}) == {'x': 4 * once}
  assert hlo.collective_bytes(loop('parameter(0)'), {'x': 16}) == {'x': once}


def test_parts_of_one_collective_count_once():
  gathers = ''.join(
      f'%f.{i} (p: f32[8]) -> f32[16] {{\n  %p = f32[8] parameter(0)\n'
      f'  ROOT %g.{i} = f32[16] all-gather(%p), channel_id={channel},'
      ' replica_groups={{0,1}}, dimensions={0}\n}\n\n'
      for i, channel in enumerate((3, 3, 3, 4))
  )
  calls = [
      f'%c.{i} = f32[16] fusion(%p), kind=kCustom, calls=%f.{i}'
      for i in range(4)
  ]
  got = hlo.collective_bytes(module(*calls, more=gathers), {'x': 2})
  assert got == {'x': 2 * 32}


def test_what_runs_beside_on_another_thread():
  more = (
      '%async (p: f32[8]) -> f32[16] {\n  %p = f32[8] parameter(0)\n'
      '  ROOT %g = f32[16] all-gather(%p), channel_id=1,'
      ' replica_groups={{0,1}}\n}, execution_thread="sparsecore"\n\n'
  )
  calls = (
      '%s = ((f32[8]), f32[16]) async-start(%p), calls=%async',
      '%d = f32[16] async-done(%s), calls=%async',
  )
  assert hlo.collective_bytes(module(*calls, more=more), {'x': 2}) == {'x': 32}


def test_a_program_with_text_of_several_lines_in_a_kernel():
  kernel = [
      '%k = f32[8] custom-call(%p), backend_config={"mlir": "a {',
      '}}", "x": 1}',
      '}}, metadata={}',
  ]
  text = module(*kernel, gather('[8,2]<=[16]'))
  text = text.replace('  }}, meta', '}}, meta')
  assert hlo.collective_bytes(text, SHAPE) == {'tensor': BYTES // 2}


def test_what_xla_compiles_for_this_machine():
  mesh = mesh_lib.make({'data': 1, 'fsdp': 4, 'tensor': 2})
  place = lambda shape, *spec: jax.ShapeDtypeStruct(
      shape,
      jnp.float32,
      sharding=NamedSharding(mesh, PartitionSpec(*spec)),
  )

  @jax.jit
  def run(x, w):
    def layer(x, w):
      w = jax.lax.with_sharding_constraint(
          w, NamedSharding(mesh, PartitionSpec())
      )
      return jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, w)[0]

  compiled = run.lower(
      place((8, 64), 'fsdp'), place((5, 64, 64), None, 'fsdp')
  ).compile()
  got = hlo.collective_bytes(compiled.as_text(), dict(mesh.shape))
  assert got == {'fsdp': 5 * 64 * 64 * 4 * 3 // 4}
