"""The report says how good the judge is, or that nobody measured it."""

import json

from etils import epath
import pytest

from palign_jax.report import blocks, inputs, judging, plots
from tests.report import fake_run


@pytest.fixture
def run(tmp_path, monkeypatch):
  picture = plots.Picture('<svg ></svg>', b'')
  monkeypatch.setattr(plots, 'drawn', lambda *args, **kwargs: picture)
  workdir = epath.Path(tmp_path)
  config = fake_run.write(workdir, num_traces=12, num_problems=4)

  def read(**changes):
    path = workdir / 'truncate/summary.json'
    if changes.pop('gone', False):
      path.unlink()
    else:
      path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return inputs.read(workdir, config)

  return read


def tables(section):
  return [b for b in section.blocks if isinstance(b, blocks.Table)]


def test_each_judge_has_a_row(run):
  section = judging.yardstick(run())
  (table,) = tables(section)
  assert [row[0].split(':')[0] for row in table.rows[:4]] == [
      *('label', 'prior', 'isotonic', 'reply'),
  ]
  assert table.rows[0][1:5] == ['0.812', '0.742–0.872', '61', '410']
  assert table.rows[4][1:5] == ['—', '—', '—', '5,200']
  text = section.blocks[0].text
  assert '244 continuations of 61 cuts in 16 traces; 49.8% were right' in text
  assert 'Of the 15 cuts that the run chose there, 3 (20.0%) came too' in text


def test_without_both_outcomes_there_is_no_score(run):
  facts = run().summaries['truncate']['yardstick']
  unknown = dict(auroc=None, low=None, high=None)
  judges = {k: v | unknown for k, v in facts['judges'].items()}
  changed = facts | {'judges': judges, 'chosen': 0}
  section = judging.yardstick(run(yardstick=changed))
  assert {row[1] for row in tables(section)[0].rows} == {'—'}
  assert 'came too early' not in section.blocks[0].text


def test_what_was_fitted_is_named(run):
  fitted = {'threshold': 0.31, 'num_rows': 40, 'slope': 1.0, 'offset': 0.0}
  cells = lambda found: {
      row[0]: row[1]
      for table in found
      if isinstance(table, blocks.Table)
      for row in table.rows
  }
  said = cells(judging._verdicts(run(calibration=fitted)))
  assert said['threshold, fitted'] == '0.31'
  platt = fitted | {'threshold': 0.5, 'slope': 0.4, 'offset': -1.5}
  said = cells(judging._verdicts(run(calibration=platt)))
  assert 'threshold, fitted' not in said
  assert said['chance to pass, fitted (Platt)'] == '0.4 · log-odds − 1.5'
  assert said['threshold of that chance'] == '0.5'
  assert said['rows that it was fitted on'] == '40'


def test_what_was_not_measured_is_said(run):
  (block,) = judging.yardstick(run(yardstick=None)).blocks
  assert 'Not measured: config.truncate.yardstick.traces' in block.text
  (block,) = judging.yardstick(run(gone=True)).blocks
  assert 'truncate/summary.json is not there' in block.text


def test_violations_and_a_fitted_threshold_are_told(run):
  fitted = {'threshold': 0.61, 'prior': True, 'num_rows': 88}
  section = judging.prefixes(run(calibration=fitted))
  rows = dict(tables(section)[0].rows)
  assert rows['“enough” followed by “not enough”'] == '5.4%'
  assert rows['traces with such a fall'] == '21.7%'
  assert rows['threshold, fitted'] == '0.61'
  assert rows['rows that it was fitted on'] == '88'
  captions = [b.caption for b in section.blocks if hasattr(b, 'caption')]
  assert any('Dotted: where each rule would cut.' in c for c in captions)
  assert judging._threshold(run(calibration=fitted)) == 0.61
  assert judging._threshold(run(calibration=None)) == 0.5
