"""A workdir serves one config and the inputs its stages were made from."""

import json
import os
import subprocess

import pytest

from palign_jax.core import errors, jsonl, workdir as workdir_lib

STAGES = ('teach', 'truncate', 'sft', 'sample')
CONFIG = {
    'seed': 0,
    'mesh': {'data': 1},
    'compute': {'num_rows': 8},
    'report': {'title': 'a'},
    'student': {'path': '/models/a', 'dtype': 'float32'},
    'teacher': {'path': None},
    'teach': {'traces': 'traces.jsonl', 'limit': 0},
    'sft': {'optim': {'peak_lr': 0.1}, 'masked': (1, 2)},
    'sample': {'n': 3},
    'benchmarks': {'aime': 'aime.jsonl'},
}
INPUTS = {
    'student.path': 'aa',
    'teach.traces': 'bb',
    'benchmarks.aime': 'cc',
}


def changed(**fields):
  """CONFIG with fields such as sft__optim__peak_lr changed."""
  config = json.loads(json.dumps(CONFIG))
  for name, value in fields.items():
    *path, last = name.split('__')
    place = config
    for part in path:
      place = place[part]
    place[last] = value
  return config


def begin(place, *stages):
  for stage in stages:
    jsonl.write(place / stage / 'rows.jsonl', [{'id': 1}])


@pytest.fixture
def place(tmp_path):
  place = workdir_lib.Workdir(tmp_path / 'run', STAGES)
  place.open(CONFIG, {'inputs': INPUTS, 'seed': 0})
  return place


def test_writes_config_and_manifest(place):
  written = json.loads((place / 'config.json').read_text())
  assert written == json.loads(json.dumps(CONFIG))
  manifest = json.loads((place / 'manifest.json').read_text())
  assert sorted(manifest) == [
      *('changes', 'created', 'inputs', 'seed', 'token', 'updated')
  ]
  assert manifest['inputs'] == INPUTS


def manifest(place):
  return json.loads((place / 'manifest.json').read_text())


def test_what_bears_on_the_last_bits_of_rows_is_recorded(place):
  begin(place, 'teach')
  place.finish('teach', {})
  rows = [{'id': 1}, {'id': 2}, {'_tally': {'seconds': 1}}]
  jsonl.write(place / 'truncate/prefixes.jsonl.parts/000-00000.jsonl', rows)
  place.open(changed(report__title='b'), {'inputs': INPUTS, 'hosts': 2})
  assert manifest(place)['changes'] == []  # Nothing of that kind.
  place.open(changed(compute__num_rows=4), {'inputs': INPUTS, 'hosts': 1})
  (change,) = manifest(place)['changes']
  assert change['changed'] == {'compute.num_rows': [8, 4], 'hosts': [2, 1]}
  assert change['rows'] == {'truncate': 2}  # teach is finished.
  place.open(changed(mesh__data=2, compute__num_rows=4), {'hosts': 1})
  first, second = manifest(place)['changes']
  assert first == change
  assert second['changed'] == {'mesh.data': [1, 2]}


def test_what_became_clear_under_way_is_recorded_too(place):
  change = {'changed': {'judging.halved': [0, 1]}, 'rows': {'truncate': 2}}
  place.note(change)
  place.note(change)
  place.open(CONFIG, {'inputs': INPUTS})
  first, second = manifest(place)['changes']
  assert first == second | {'at': first['at']} == {**change, 'at': first['at']}
  assert manifest(place)['inputs'] == INPUTS


def test_a_change_between_stages_bears_on_nothing(place):
  begin(place, 'teach')
  place.finish('teach', {})
  place.open(changed(compute__num_rows=4), {'inputs': INPUTS})
  assert manifest(place)['changes'] == []


def test_every_opening_leaves_another_token(place):
  first = place.token
  place.open(CONFIG, {'inputs': INPUTS})
  assert len({first, place.token, ''}) == 3


def test_parts_go_when_their_stage_is_finished(place):
  files = ['truncate/a.jsonl.parts/000-00000.jsonl']
  files += ['sample/before/b.jsonl.parts/000-00000.jsonl']
  for file in files:
    jsonl.write(place / file, [{'id': 1}])
  place.finish('sample', {})
  assert [(place / file).exists() for file in files] == [True, False]
  # Killed between the two: they go the next time.
  jsonl.write(place / files[1], [{'id': 1}])
  place.open(CONFIG, {'inputs': INPUTS})
  assert [(place / file).exists() for file in files] == [True, False]


def test_returns_to_the_same_config_whatever_has_begun(place):
  begin(place, *STAGES)
  created = json.loads((place / 'manifest.json').read_text())['created']
  place.open(CONFIG, {'inputs': INPUTS})
  manifest = json.loads((place / 'manifest.json').read_text())
  assert manifest['created'] == created


@pytest.mark.parametrize(
    'begun, field, value, message',
    [
        ('teach', 'teach__limit', 5, r'teach.limit \(there 0, here 5\)'),
        ('truncate', 'student__path', '/b', "student.path .there '/models/a'"),
        ('truncate', 'student__dtype', 'bfloat16', 'student.dtype'),
        ('sft', 'sft__optim__peak_lr', 0.2, 'sft.optim.peak_lr .there 0.1, h'),
        ('sft', 'sft__masked', [1], r'sft.masked \(there \[1, 2\], here \[1\]'),
        (
            'sample',
            'benchmarks__math',
            'm.jsonl',
            'benchmarks.math .there None',
        ),
        ('teach', 'seed', 1, r'seed \(there 0, here 1\)'),
    ],
)
def test_a_field_of_a_begun_stage_may_not_differ(
    place, begun, field, value, message
):
  place.open(changed(**{field: value}), {'inputs': {}})  # Nothing has begun.
  place.open(CONFIG, {'inputs': INPUTS})
  begin(place, begun)
  before = (place / 'config.json').read_bytes()
  manifest = (place / 'manifest.json').read_bytes()
  with pytest.raises(errors.ConfigError, match=message):
    place.open(changed(**{field: value}), {'inputs': {}})
  assert (place / 'config.json').read_bytes() == before
  assert (place / 'manifest.json').read_bytes() == manifest


def test_all_fields_that_differ_are_named(place):
  begin(place, 'teach', 'sft')
  other = changed(seed=1, sft__optim__peak_lr=0.2, sample__n=1)
  with pytest.raises(
      errors.ConfigError, match='seed .*, sft.optim.peak_lr'
  ) as e:
    place.open(other, {})
  assert 'sample.n' not in str(e.value)  # It has not begun.
  assert '\n' not in str(e.value)


def test_fields_that_cannot_change_results_may_differ(place):
  begin(place, *STAGES)
  place.open(
      changed(mesh__data=8, compute__num_rows=1, report__title='b'),
      {'inputs': INPUTS},
  )
  assert json.loads((place / 'config.json').read_text())['mesh'] == {'data': 8}


def test_what_has_moved_is_known_by_its_content(place):
  begin(place, *STAGES)
  moved = changed(student__path='/elsewhere', teach__traces='/t.jsonl')
  place.open(moved, {'inputs': INPUTS})
  other = {**INPUTS, 'student.path': 'ee'}
  with pytest.raises(errors.ConfigError, match="student.path .there '/elsew"):
    place.open(CONFIG, {'inputs': other})


def test_what_has_changed_in_its_place_is_refused(place):
  other = {**INPUTS, 'teach.traces': 'dd'}
  place.open(CONFIG, {'inputs': other})  # Not used yet.
  place.open(CONFIG, {'inputs': INPUTS})
  begin(place, 'teach')
  with pytest.raises(
      errors.ConfigError, match="teach.traces .what is at 'traces.jsonl' has"
  ):
    place.open(CONFIG, {'inputs': other})
  del other['teach.traces']  # Gone, as it may: it was read.
  place.open(CONFIG, {'inputs': other})


def test_a_stage_is_finished_when_it_says_so(place):
  assert not place.begun('teach') and not place.finished('teach')
  begin(place, 'teach')
  assert place.begun('teach') and not place.finished('teach')
  assert place.summary('teach') == {}
  place.finish('teach', {'traces': 3})
  assert place.finished('teach')
  assert place.summary('teach') == {'traces': 3}


def test_half_written_files_of_the_dead_are_removed(place):
  begin(place, *STAGES)
  place.finish('sample', {})
  process = subprocess.Popen(['true'])
  process.wait()
  dead = process.pid
  gone = [
      place / f'teach/.rows.jsonl.{dead}.tmp',
      place / f'truncate/rows.jsonl.parts/.00001.jsonl.{dead}.tmp',
      place / f'sft/.export.{dead}.tmp/config.json',
      place / f'sft/.export.{dead}.old/config.json',
      # Of a life before, with the same number: in a container it is always 1.
      place / f'sft/.export.{os.getpid()}.tmp/config.json',
  ]
  kept = [
      place / f'teach/.rows.jsonl.{os.getppid()}.tmp',  # Alive.
      place / 'teach/.hidden.txt',
      place / 'sft/notes.1.tmp',
  ]
  for path in gone + kept:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{')
  place.open(CONFIG, {'inputs': INPUTS})
  assert [path.exists() for path in gone + kept] == [False] * 5 + [True] * 3
  assert not gone[2].parent.exists()


@pytest.mark.parametrize('name', ['config.json', 'manifest.json'])
def test_a_broken_file_of_the_workdir_is_named(place, name):
  (place / name).write_text('{"seed": ')
  with pytest.raises(errors.DataError, match=f'{name}: no valid JSON'):
    place.open(CONFIG, {})


def test_a_workdir_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('mine')
  place = workdir_lib.Workdir(tmp_path / 'file', STAGES)
  with pytest.raises(errors.ConfigError, match='--workdir=.*cannot be written'):
    place.open(CONFIG, {})
  assert (tmp_path / 'file').read_text() == 'mine'


def test_flatten():
  tree = {'a': {'b': (1, 2), 'c': {'d': None}}, 'e': 'x'}
  assert workdir_lib.flatten(tree) == {'a.b': [1, 2], 'a.c.d': None, 'e': 'x'}


def test_hashes_of_inputs_stay_when_a_later_start_does_not_need_them(tmp_path):
  place = workdir_lib.Workdir(tmp_path, ['truncate', 'grade'])
  place.open({'seed': 0}, {'inputs': {'student.path': 'aa'}})
  place.open({'seed': 0}, {'inputs': {'benchmarks.b': 'bb'}})
  manifest = json.loads((tmp_path / 'manifest.json').read_text())
  assert manifest['inputs'] == {'student.path': 'aa', 'benchmarks.b': 'bb'}
