"""A run writes the files and fields of the contract, and loses no row."""

import json
import shutil

import jax.numpy as jnp
import numpy as np

from palign_jax import main
from palign_jax.checkpoints import hf_import
from palign_jax.report import inputs
from palign_jax.text import prompts, tokenizer as tokenizer_lib

TRACE = {'id', 'question', 'answer', 'Long-CoT'}
REFERENCE_PREFIX = {
    *('id', 'answer', 'question', 'sufficient_reasoning'),
    *('sufficient_sentences', 'total_sentences', 'prefix_ratio'),
    *('is_sufficient', 'evaluator_response'),
}
PREFIX = REFERENCE_PREFIX | {
    *('p_enough', 'margin', 'probes', 'prefix_end', 'status', 'reason'),
}
COMPLETION = {
    *('id', 'question', 'answer', 'sufficient_reasoning', 'prompt', 'output'),
    *('finish_reason', 'sample'),
}
TRAIN = {'instruction', 'input', 'output', 'id', 'answer', 'verdict', 'grader'}
SAMPLES = {'prompt_ori', 'answer', 'output', 'id', 'question', 'finish_reason'}
GRADED = SAMPLES | {'label', 'passn', 'output_ans'}
METRICS = {
    *('pass@1', 'first', 'pass@1', 'pass@2', 'maj@2', 'boxed_only'),
    *('truncated', 'loops'),
}


def summary(run, stage):
  return json.loads((run.path / stage / 'summary.json').read_text())


def contents(folder):
  return {
      p.relative_to(folder): p.stat().st_mtime_ns
      for p in folder.rglob('*')
      if p.is_file() and p.name not in ('config.json', 'manifest.json')
  }


def test_every_file_is_there_and_nothing_else_in_the_stages_of_rows(whole):
  files = {
      stage: sorted(
          str(p.relative_to(whole.path / stage))
          for p in (whole.path / stage).rglob('*')
          if p.is_file()
      )
      for stage in main.STAGES
  }
  pair = ['after/sums.jsonl', 'before/sums.jsonl']
  assert files['teach'] == ['summary.json', 'traces.jsonl']
  assert files['truncate'] == ['prefixes.jsonl', 'summary.json']
  assert files['align'] == ['completions.jsonl', 'summary.json']
  assert files['assemble'] == [
      'rejected.jsonl',
      'summary.json',
      'train.jsonl',
  ]
  assert files['sample'] == [*pair, 'summary.json']
  assert files['grade'] == [*pair, 'scores.json', 'summary.json']
  assert {'index.html', 'report.md', 'summary.json'} <= set(files['report'])
  assert any(name.endswith('.png') for name in files['report'])
  assert {'metrics.jsonl', 'summary.json', 'export/config.json'} <= set(
      files['sft']
  )
  assert {'adapter/adapter_config.json', 'export/tokenizer.json'} <= set(
      files['sft']
  )
  assert any(name.startswith('checkpoints/') for name in files['sft'])


def test_every_trace_has_a_prefix_that_is_a_slice_of_it(whole):
  traces, prefixes = whole.rows('teach/traces.jsonl'), whole.rows(
      'truncate/prefixes.jsonl'
  )
  assert [t['id'] for t in traces] == [p['id'] for p in prefixes]
  for trace, row in zip(traces, prefixes, strict=True):
    assert TRACE <= set(trace) and PREFIX <= set(row)
    end = row['prefix_end']
    assert row['sufficient_reasoning'] == trace['Long-CoT'][:end]
    assert not row['sufficient_reasoning'][-1:].isspace()
    assert row['status'] == 'kept'
    assert 1 <= row['sufficient_sentences'] <= row['total_sentences']
    ratio = row['sufficient_sentences'] / row['total_sentences']
    assert row['prefix_ratio'] == ratio
    for probe in row['probes']:
      assert set(probe) >= {'sentences', 'p_enough'}
      assert 0 < probe['p_enough'] < 1
  counts = summary(whole, 'truncate')
  assert counts['traces'] == len(traces) == sum(counts['status'].values())
  assert counts['probes'] == sum(len(p['probes']) for p in prefixes)


def test_every_completion_is_in_train_or_rejected(whole):
  completions = whole.rows('align/completions.jsonl')
  assert all(COMPLETION <= set(row) for row in completions)
  name = lambda row: (row['id'], row['sample'])
  assert [name(r) for r in completions] == [
      (f't{i}', sample) for i in range(5) for sample in range(3)
  ]
  train = whole.rows('assemble/train.jsonl')
  rejected = whole.rows('assemble/rejected.jsonl')
  assert all(TRAIN <= set(row) for row in train)
  assert all(TRAIN | {'reason'} <= set(row) for row in rejected)
  assert sorted(map(name, train + rejected)) == sorted(map(name, completions))
  assert len({row['id'] for row in train}) == len(train)  # The first of each.
  assert {row['verdict'] for row in train} == {'correct'}
  counts = summary(whole, 'assemble')
  assert counts['train'] == len(train) and counts['rejected'] == len(rejected)
  assert counts['completions'] == len(completions)
  # Every trace boxes its answer in its first sentence.
  assert counts['answer_in_prefix'] == len(train) > 0
  assert sum(counts['reason'].values()) == len(rejected)
  by_name = {name(row): row for row in completions}
  for row in train:
    source = by_name[name(row)]
    assert row['output'] == (
        f'<Begin_of_Prefix>{source["sufficient_reasoning"]}<End_of_Prefix>'
        + source['output']
    )
    assert source['finish_reason'] == 'stop'
  for row in rejected:
    if by_name[name(row)]['finish_reason'] == 'length':
      assert row['reason'] == 'length'


def test_the_first_correct_completion_is_taken(whole):
  completions = whole.rows('align/completions.jsonl')
  first = {}
  for row in completions:  # Every trace says its answer at once.
    if row['finish_reason'] == 'stop':
      first.setdefault(row['id'], row['sample'])
  train = {r['id']: r['sample'] for r in whole.rows('assemble/train.jsonl')}
  assert train == first


def test_prompts_are_the_text_that_was_fed(whole, student):
  chat = tokenizer_lib.load(student).chat
  for row in whole.rows('align/completions.jsonl'):
    user = prompts.answer('brief', row['question'])
    assert row['prompt'] == chat.prompt(user) + row['sufficient_reasoning']


def test_samples_and_grades(whole):
  for model in ('before', 'after'):
    samples = whole.rows(f'sample/{model}/sums.jsonl')
    graded = whole.rows(f'grade/{model}/sums.jsonl')
    assert [row['id'] for row in samples] == ['0', '1', '2']
    for row, grades in zip(samples, graded, strict=True):
      assert SAMPLES <= set(row) and GRADED <= set(grades)
      assert row.items() <= grades.items()
      assert len(row['output']) == len(row['finish_reason']) == 2
      assert len(grades['label']) == len(grades['output_ans']) == 2
      assert grades['passn'] == max(grades['label'])
      assert row['prompt_ori'] == f'Question: {row["question"]}'
  assert summary(whole, 'grade')['graded'] == 12
  reasons = summary(whole, 'sample')['samples']
  assert set(reasons) == {'before/sums', 'after/sums'}
  assert all(sum(counts.values()) == 6 for counts in reasons.values())


def test_scores(whole):
  scores = json.loads((whole.path / 'grade/scores.json').read_text())
  assert set(scores) == {'sums'}
  assert set(scores['sums']) == {'before', 'after', 'after-before'}
  for model in ('before', 'after'):
    assert METRICS <= set(scores['sums'][model])
    for metric in scores['sums'][model].values():
      assert set(metric) == {'value', 'low', 'high', 'n', 'samples'}
      assert metric['low'] <= metric['value'] <= metric['high']
    assert scores['sums'][model]['pass@1']['n'] == 3
    assert scores['sums'][model]['pass@1']['samples'] == 2
  paired = scores['sums']['after-before']['pass@1']
  assert {'value', 'low', 'high'} <= set(paired)


def test_training_changed_the_student(whole, student):
  facts = summary(whole, 'sft')
  assert facts['examples'] == summary(whole, 'assemble')['train']
  assert facts['export_dtype'] == 'float32'
  assert facts['export_logit_error']['max'] < 1e-4
  assert facts['export_logit_error']['argmax_changed'] == 0.0
  before = hf_import.load(student, dtype=jnp.float32)
  after = hf_import.load(whole.path / 'sft/export', dtype=jnp.float32)
  assert after.config == before.config
  change = np.abs(
      after.params['layers']['q']['kernel']
      - before.params['layers']['q']['kernel']
  )
  assert change.max() > 1e-4
  metrics = whole.rows('sft/metrics.jsonl')
  assert [row['step'] for row in metrics] == list(range(1, facts['steps'] + 1))
  assert all(np.isfinite(row['loss']) for row in metrics)


def test_a_training_prompt_has_the_tokens_of_an_evaluation_prompt(whole):
  """Of one question, as sft writes it and as sample writes it."""
  tokenizer = tokenizer_lib.load(whole.config.student.path)
  row, *_ = whole.rows('assemble/train.jsonl')
  user = prompts.answer('brief', row['input'])
  evaluation = tokenizer.encode(tokenizer.chat.prompt(user))
  text = tokenizer.chat.prompt(user) + row['output'] + '<|im_end|>'
  assert tokenizer.encode(text)[: len(evaluation)] == evaluation
  completions = whole.rows('align/completions.jsonl')
  prompt, *_ = [r['prompt'] for r in completions if r['id'] == row['id']]
  assert tokenizer.encode(prompt)[: len(evaluation)] == evaluation


def test_manifest_and_summaries(whole):
  manifest = json.loads((whole.path / 'manifest.json').read_text())
  assert {'versions', 'devices', 'seed', 'inputs'} <= set(manifest)
  assert set(manifest['inputs']) == {
      *('student.path', 'teach.traces', 'benchmarks.sums'),
  }
  assert set(manifest['versions']) >= {'python', 'jax', 'transformers'}
  for stage in main.STAGES:
    assert {'tokens', 'seconds', 'rates'} <= set(summary(whole, stage))


def test_the_report_reads_the_run(whole):
  page = (whole.path / 'report/index.html').read_text()
  assert page.startswith('<!doctype html>'.upper()) or '<html' in page
  assert 'src="http' not in page and 'href="http' not in page
  assert inputs.STAGES == main.STAGES


def test_a_finished_run_only_reports_again(whole, monkeypatch):
  kept = lambda: {
      name: data
      for name, data in contents(whole.path).items()
      if not str(name).startswith('report')
  }
  before = kept()
  assert len(before) > 10
  monkeypatch.setattr(hf_import, 'load', None)  # Not even load a model.
  main.run(whole.config, whole.path, main.STAGES)
  assert kept() == before


def test_only_the_stages_that_are_asked_for(start):
  run = start(['align', 'teach', 'truncate'])
  done = sorted(p.name for p in run.path.iterdir() if p.is_dir())
  assert done == ['align', 'teach', 'truncate']
  main.run(run.config, run.path, ['assemble'])
  assert (run.path / 'assemble/train.jsonl').exists()


def test_what_rows_wait_with_changes_nothing(start):
  """Rows of another group and part are the same rows."""
  stages = ['teach', 'truncate', 'align']
  files = ('truncate/prefixes.jsonl', 'align/completions.jsonl')
  run = start(stages)
  before = [run.rows(file) for file in files]
  shutil.rmtree(run.path)
  run = start(stages, compute__group=4, compute__part_rows=1)
  assert [run.rows(file) for file in files] == before


def test_rows_are_plain_utf8_json(whole):
  text = (whole.path / 'teach/traces.jsonl').read_text(encoding='utf-8')
  assert 'é' in text  # Not escaped.
  assert len(whole.rows('teach/traces.jsonl')) == text.count('\n') == 5
