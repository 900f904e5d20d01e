"""All systems on one tiny checkpoint, in this process."""

import importlib

from etils import epath
import pytest

from benchmarks import harness, judge, shapes, texts
from palign_jax.text import tokenizer as tokenizer_lib


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = epath.Path(tmp_path_factory.mktemp('shapes')) / 'tiny'
  shapes.make(folder, 'tiny', judge.SANDBOX, 'float32', own=False)
  tasks = texts.tasks(
      texts.sandbox(),
      tokenizer_lib.load(judge.SANDBOX),
      num_traces=2,
      num_tokens=60,
      num_sentences=5,
  )
  return str(folder), tasks


def _run(spec):
  module, name = spec.target.split(':')
  system = getattr(importlib.import_module(module), name)(**spec.options)
  return harness.Measured(spec, 0, (1.0,), system.run(), 1)


@pytest.mark.parametrize('case', ['curve', 'binary'])
def test_all_systems_probe_the_same_and_agree(made, case):
  folder, tasks = made
  specs = judge.specs(case, folder, tasks, 'float32', 512, few=2)
  measured = [_run(spec) for spec in specs]
  judge.check(measured)
  facts = {m.spec.system: m.facts for m in measured}
  assert {'ours', 'torch_strong'} <= set(facts)
  for each in facts.values():
    assert each['probes'] == facts['ours']['probes']
    assert each['num_probes'] == facts['ours']['num_probes'] > 0
    assert each['tokens'] == facts['ours']['tokens']
    if 'mean_margin' in each:  # A reply in words has none.
      margin = facts['ours']['mean_margin']
      assert each['mean_margin'] == pytest.approx(margin, abs=1e-4)


def test_a_different_probe_is_found_out(made):
  spec = lambda name: harness.Spec('binary', name, '', {})
  facts = lambda length: {'probes': {'t': [length]}}
  measured = [
      harness.Measured(spec('ours'), 0, (1.0,), facts(3), 1),
      harness.Measured(spec('torch_strong'), 0, (1.0,), facts(4), 1),
  ]
  with pytest.raises(RuntimeError, match='torch_strong probed t at'):
    judge.check(measured)


def test_plain_passes_read_the_same_tokens(made):
  folder, tasks = made
  ours, torchs = (
      _run(spec).facts
      for spec in judge.specs('trunk', folder, tasks, 'float32', 512)
  )
  assert ours['tokens'] == torchs['tokens'] > 0


@pytest.mark.parametrize('flags', [['--traces=x'], ['--tokenizer=x']])
def test_traces_need_their_tokenizer(flags, capsys):
  with pytest.raises(SystemExit):
    judge.parse(['--shape=tiny', *flags])
  assert 'come together' in capsys.readouterr().err
