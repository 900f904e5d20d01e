"""A store is asked each time: another host may have put something."""

import json

import fsspec
from fsspec import config as fsspec_config
import pytest

from palign_jax.core import jsonl, parts as parts_lib, peers, stores, workdir
from tests import stores as fake


@pytest.mark.parametrize('protocol', ['gs', 'gcs'])
def test_listings_are_not_remembered(monkeypatch, protocol):
  monkeypatch.setattr(fsspec_config, 'conf', {})
  make = lambda: fsspec.filesystem(
      protocol, token='anon', skip_instance_cache=True
  )
  assert make().dircache.use_listings_cache  # Or this could go.
  stores.see_what_is_there()
  assert not make().dircache.use_listings_cache


def test_parts_and_workdir_on_a_store(tmp_path):
  """All that a store cannot do is refused, so it is not done."""
  with fake.bucket() as (bucket, store):
    place = workdir.Workdir(bucket / 'run', ['teach'])
    config, facts = {'compute': {'num_rows': 2}}, {'hosts': 1}
    place.open(config, facts)
    parts = lambda: parts_lib.Parts(
        place / 'teach/rows.jsonl',
        key=lambda row: row['id'],
        max_rows=1,
        peers=peers.Alone(),
    )
    with parts() as first:
      first.add({'id': 'a'}, tokens=3)
    place.open({'compute': {'num_rows': 4}}, facts)  # Killed, and again.
    with parts() as second:
      assert 'a' in second and 'b' not in second
      second.add({'id': 'b'}, tokens=4)
      second.gather()
      second.merge(second.rows('ab'))
    assert second.totals()['tokens'] == 7
    place.finish('teach', {'rows': 2})
    assert place.finished('teach') and place.begun('teach')
    assert jsonl.read(place / 'teach/rows.jsonl') == [{'id': 'a'}, {'id': 'b'}]
    assert sorted(store.objects) == [
        f'gs://bucket/run/{name}'
        for name in (
            'config.json',
            'manifest.json',
            'teach/rows.jsonl',
            'teach/summary.json',
        )
    ]
    (change,) = json.loads((place / 'manifest.json').read_text())['changes']
    assert change['changed'] == {'compute.num_rows': [2, 4]}
    assert change['rows'] == {'teach': 1}


@pytest.mark.parametrize('do', ['append', 'rename'])
def test_the_fake_refuses(do):
  with fake.bucket() as (bucket, _):
    (bucket / 'a').write_text('x')
    with pytest.raises(fake.Refused, match=do):
      if do == 'append':
        (bucket / 'a').open('a')
      else:
        (bucket / 'a').rename(bucket / 'b')
