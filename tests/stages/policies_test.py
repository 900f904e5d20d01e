"""Each choice of a config does what it says, and the files tell of it."""

import itertools
import json
import shutil

from etils import epath
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from palign_jax.checkpoints import hf_import
from palign_jax.core import errors, jsonl, stopping
from palign_jax.judging import rules, trunk_scorer, yardstick
from palign_jax.parallel import memory
from palign_jax.stages import sft
from palign_jax.text import prompts, tokenizer as tokenizer_lib
from tests import fakes

JUDGED = ['teach', 'truncate']
NEVER = {'truncate__threshold': 0.999}


def summary(run, stage):
  return json.loads((run.path / stage / 'summary.json').read_text())


def test_a_trace_of_which_no_prefix_suffices_is_kept_whole(start):
  run = start(JUDGED, truncate__none_enough='whole', **NEVER)
  for trace, row in zip(
      fakes.traces(4), run.rows('truncate/prefixes.jsonl'), strict=True
  ):
    assert row['sufficient_reasoning'] == trace['Long-CoT'].rstrip()
    assert row['sufficient_sentences'] == row['total_sentences']
    assert (row['status'], row['reason']) == ('kept', 'no_prefix')
    assert not row['is_sufficient'] and not row['judged']
  assert summary(run, 'truncate')['reason'] == {'no_prefix': 4}


def test_or_it_is_dropped_and_counted_to_the_end(start):
  run = start(
      [*JUDGED, 'align', 'assemble'], truncate__none_enough='drop', **NEVER
  )
  for row in run.rows('truncate/prefixes.jsonl'):
    assert (row['status'], row['reason']) == ('dropped', 'no_prefix')
    assert row['sufficient_reasoning'] == '' and row['probes']
  assert run.rows('align/completions.jsonl') == []
  assert run.rows('assemble/train.jsonl') == []
  rejected = run.rows('assemble/rejected.jsonl')
  assert [(r['id'], r['reason']) for r in rejected] == [
      (f't{i}', 'no_prefix') for i in range(4)
  ]
  assert summary(run, 'assemble')['reason'] == {'no_prefix': 4}


def test_or_its_most_probable_prefix_is_taken(start):
  run = start(
      JUDGED,
      truncate__none_enough='most_probable',
      truncate__search='curve',
      **NEVER,
  )
  for row in run.rows('truncate/prefixes.jsonl'):
    assert len(row['probes']) == row['total_sentences']
    best = max(row['probes'], key=lambda probe: probe['p_enough'])
    assert row['p_enough'] == best['p_enough']
    assert row['sufficient_sentences'] == best['sentences']
    assert (row['status'], row['reason']) == ('kept', 'no_prefix')
    assert row['judged'] and not row['is_sufficient']


def test_the_paper_s_search_marks_what_it_never_judged(start):
  run = start(JUDGED, truncate__search='paper', **NEVER)
  for row in run.rows('truncate/prefixes.jsonl'):
    assert row['sufficient_sentences'] == row['total_sentences']
    assert (row['status'], row['reason']) == ('kept', 'never_judged')
    assert not row['judged'] and row['p_enough'] is None
    assert row['total_sentences'] not in [
        probe['sentences'] for probe in row['probes']
    ]
  assert summary(run, 'truncate')['reason'] == {'never_judged': 4}


def test_an_abstaining_judge_says_not_enough_and_is_counted(start):
  run = start(JUDGED, truncate__abstain=0.49, truncate__search='sequential')
  rows = run.rows('truncate/prefixes.jsonl')
  assert {row['reason'] for row in rows} == {'no_prefix'}
  assert [row['abstained'] for row in rows] == [len(r['probes']) for r in rows]
  assert summary(run, 'truncate')['abstained'] == sum(
      row['abstained'] for row in rows
  )


def test_a_generated_verdict_is_written_and_read_by_the_rule(start):
  run = start(JUDGED, truncate__verdict='generate', num_traces=2)
  for row in run.rows('truncate/prefixes.jsonl'):
    assert row['p_enough'] is None and row['margin'] is None
    # Noise holds no label: nothing is enough, and the whole trace is kept.
    assert not prompts.parse_verdict(row['evaluator_response'])
    assert (row['status'], row['reason']) == ('kept', 'no_prefix')


LONG = {
    'id': 'long',
    'question': 'How many?',
    'answer': '1',
    'Long-CoT': ' '.join(f'Step {i} is done.' for i in range(60)),
}
EMPTY = [
    {**LONG, 'id': 'empty', 'Long-CoT': ''},
    {**LONG, 'id': 'blank', 'Long-CoT': ' \n\t '},
]


@pytest.mark.parametrize('verdict', ['label', 'generate'])
def test_a_trace_longer_than_the_context_is_searched_within_it(
    start, student, verdict
):
  run = start(
      ['truncate'],
      files={'teach/traces.jsonl': [LONG]},
      truncate__too_long='fit',
      truncate__verdict=verdict,
      **NEVER,
  )
  (row,) = run.rows('truncate/prefixes.jsonl')
  tokenizer = tokenizer_lib.load(student)
  room = 8
  length = lambda n: len(
      tokenizer.encode(
          tokenizer.chat.prompt(
              prompts.judge('brief', 'How many?', prefix_of(n))
          )
      )
  )
  ends = [i for i, c in enumerate(LONG['Long-CoT'], 1) if c == '.']
  prefix_of = lambda n: LONG['Long-CoT'][: ends[n - 1]]
  fitting = [n for n in range(1, 61) if length(n) + room <= 512]
  assert row['total_sentences'] == 60
  assert 1 < len(fitting) < 60
  asked = [probe['sentences'] for probe in row['probes']]
  assert asked == sorted(asked) and asked[-1] == fitting[-1]


def test_or_it_is_dropped_as_are_traces_without_a_sentence(start):
  run = start(
      ['truncate', 'align', 'assemble'],
      files={'teach/traces.jsonl': [*fakes.traces(1), LONG, *EMPTY]},
      align__n=1,
  )
  rows = run.rows('truncate/prefixes.jsonl')
  assert [(r['id'], r['status'], r['reason']) for r in rows] == [
      ('t0', 'kept', ''),
      ('long', 'dropped', 'too_long'),
      ('empty', 'dropped', 'empty_trace'),
      ('blank', 'dropped', 'empty_trace'),
  ]
  assert summary(run, 'truncate')['status'] == {'dropped': 3, 'kept': 1}
  reasons = [r['reason'] for r in run.rows('assemble/rejected.jsonl')]
  assert reasons[-3:] == ['too_long', 'empty_trace', 'empty_trace']


def test_a_question_that_fills_the_context_leaves_nothing_to_judge(start):
  trace = {**LONG, 'question': 'How many? ' * 200}
  run = start(
      ['truncate'],
      files={'teach/traces.jsonl': [trace]},
      truncate__too_long='fit',
  )
  (row,) = run.rows('truncate/prefixes.jsonl')
  assert (row['status'], row['reason']) == ('dropped', 'too_long')


def test_replies_end_before_a_stop_string(start):
  """The same replies as without one, up to the first."""
  stop = ['e', '19']
  files = {'truncate/prefixes.jsonl': [completion(i) for i in range(2)]}
  drawing = dict(align__n=6, align__max_tokens=20)
  run = start(['align'], files=files, **drawing)
  want, num_stopped = [], 0
  for row in run.rows('align/completions.jsonl'):
    text, reason = row['output'], row['finish_reason']
    place = min([text.find(s) for s in stop if s in text], default=None)
    num_stopped += place is not None
    want.append((text[:place], reason if place is None else 'stop'))
  shutil.rmtree(run.path)
  run = start(['align'], files=files, align__stop=tuple(stop), **drawing)
  rows = run.rows('align/completions.jsonl')
  assert [(r['output'], r['finish_reason']) for r in rows] == want
  assert num_stopped > 2


def test_a_draft_is_quoted_to_the_student(start, student):
  run = start([*JUDGED, 'align', 'assemble'], align__mode='draft')
  chat = tokenizer_lib.load(student).chat
  for row in run.rows('align/completions.jsonl'):
    user = prompts.align('brief', row['question'], row['sufficient_reasoning'])
    assert row['prompt'] == chat.prompt(user)
  # The prefix names the answer, the student does not: its turn alone counts.
  assert run.rows('assemble/train.jsonl') == []
  assert set(summary(run, 'assemble')['reason']) <= {'wrong', 'length'}


def completion(i, **fields):
  return {
      'id': f'q{i}',
      'question': f'Question {i}?',
      'answer': '7',
      'sufficient_reasoning': 'It is so.',
      'prompt': '',
      'output': ' Hence \\boxed{7}.',
      'finish_reason': 'stop',
      'sample': 0,
      **fields,
  }


COMPLETIONS = [
    completion(0),
    completion(0, sample=1),
    completion(1, output=' It is \\boxed{8}.'),
    completion(2, finish_reason='length'),
    completion(3, finish_reason='loop'),
    completion(4, answer=None),
    completion(5, output='', finish_reason='too_long'),
    completion(6, sufficient_reasoning='It is \\boxed{7}.', output=' Yes.'),
    completion(7, sufficient_reasoning='No: \\boxed{8}.'),
]


# Two boxes are two answers, as math-verify reads them: q7 is wrong.
LATER = [('q6', 0, 'correct')]


@pytest.mark.parametrize(
    'changes, train, rejected',
    [
        (
            {},
            [('q0', 0, 'correct'), *LATER],
            [
                'surplus',
                'wrong',
                'length',
                'loop',
                'unverifiable',
                'too_long',
                'wrong',
            ],
        ),
        (
            {'assemble__keep': 'all'},
            [('q0', 0, 'correct'), ('q0', 1, 'correct'), *LATER],
            ['wrong', 'length', 'loop', 'unverifiable', 'too_long', 'wrong'],
        ),
        (
            {'assemble__unverifiable': 'keep'},
            [('q0', 0, 'correct'), ('q4', 0, 'unverifiable'), *LATER],
            ['surplus', 'wrong', 'length', 'loop', 'too_long', 'wrong'],
        ),
    ],
)
def test_what_becomes_of_each_kind_of_completion(
    start, changes, train, rejected
):
  run = start(
      ['assemble'], files={'align/completions.jsonl': COMPLETIONS}, **changes
  )
  rows = run.rows('assemble/train.jsonl')
  assert [(r['id'], r['sample'], r['verdict']) for r in rows] == train
  rows = run.rows('assemble/rejected.jsonl')
  assert [row['reason'] for row in rows] == rejected
  # Of those that are kept: q6, whose answer the student did not find.
  assert summary(run, 'assemble')['answer_in_prefix'] == 1


def test_the_reference_s_files_are_read(start):
  """Its prefixes lack our fields, its completions even id and answer."""
  prefixes = [
      {
          'id': i,
          'answer': 7 + i,
          'question': f'Question {i}?',
          'sufficient_reasoning': 'It is so.',
          'sufficient_sentences': 1,
          'total_sentences': 2,
          'prefix_ratio': 0.5,
          'is_sufficient': True,
          'evaluator_response': '[ENOUGH]',
      }
      for i in range(2)
  ]
  run = start(
      ['align'], files={'truncate/prefixes.jsonl': prefixes}, align__n=1
  )
  rows = run.rows('align/completions.jsonl')
  assert [(row['id'], row['answer']) for row in rows] == [('0', 7), ('1', 8)]


def test_its_completions_too(start):
  prefix = {'question': 'Q?', 'sufficient_reasoning': 'So.', 'answer': 7}
  completions = [
      {
          'question': question,
          'sufficient_reasoning': 'So.',
          'prompt': '',
          'output': ' \\boxed{7}',
      }
      for question in ('Q?', 'R?')
  ]
  run = start(
      ['assemble'],
      files={
          'truncate/prefixes.jsonl': [{'id': 40, **prefix}],
          'align/completions.jsonl': completions,
      },
  )
  (row,) = run.rows('assemble/train.jsonl')
  assert (row['id'], row['answer'], row['verdict']) == ('40', 7, 'correct')
  (row,) = run.rows('assemble/rejected.jsonl')
  assert (row['id'], row['reason']) == ('1', 'unverifiable')


def test_a_teacher_writes_the_traces(start, student, tmp_path):
  questions = [{'problem': f'What is {i}?', 'answer': i} for i in range(3)]
  run = start(
      ['teach'],
      files={'../questions.jsonl': questions},
      teach__traces=None,
      teach__questions=str(tmp_path / 'questions.jsonl'),
      teach__limit=2,
      teacher__path=str(student),
  )
  rows = run.rows('teach/traces.jsonl')
  assert [(r['id'], r['answer']) for r in rows] == [('0', '0'), ('1', '1')]
  assert all({'question', 'Long-CoT', 'finish_reason'} <= set(r) for r in rows)
  reasons = summary(run, 'teach')['finish_reason']
  assert sum(reasons.values()) == summary(run, 'teach')['traces'] == 2


ROWS = [
    {
        'id': f'r{i}',
        'instruction': '',
        'input': f'How many is {i}?',
        'output': f'<Begin_of_Prefix>It is.<End_of_Prefix> \\boxed{{{i}}}',
    }
    for i in range(3)
]


def trace(folder):
  """In place of JAX's, which ends processes that have compiled for TPUs."""
  file = epath.Path(folder) / 'plugins/profile/now/host.xplane.pb'
  file.parent.mkdir(parents=True)
  file.write_text('A step.')


@pytest.mark.slow
def test_full_fine_tuning_exports_what_after_samples(
    start, student, monkeypatch
):
  monkeypatch.setattr(jax.profiler, 'start_trace', trace)
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: None)
  run = start(
      ['sft', 'sample'],
      files={'assemble/train.jsonl': ROWS},
      sft__method='full',
      compute__profile_steps='1:1',
  )
  assert list((run.path / 'sft/profile').glob('plugins/profile/*/*.xplane.pb'))
  assert not (run.path / 'sft/adapter').exists()
  assert summary(run, 'sft')['method'] == 'full'
  before = hf_import.load(student, dtype=jnp.float32)
  after = hf_import.load(run.path / 'sft/export', dtype=jnp.float32)
  table = lambda model: model.params['embed']['table']
  assert np.abs(table(after) - table(before)).max() > 1e-4
  texts = [
      [row['output'] for row in run.rows(f'sample/{model}/sums.jsonl')]
      for model in ('before', 'after')
  ]
  assert texts[0] != texts[1]


@pytest.mark.slow
def test_a_resumed_full_fine_tuning_holds_one_state(
    start, student, monkeypatch
):
  """Of the table, the only array of its shape, with its two moments."""
  model = hf_import.describe(student, dtype=jnp.float32)
  table = model.params['embed']['table']
  like = lambda: [x for x in jax.live_arrays() if x.shape == table.shape]
  others, held, compile = like(), [], sft.step.compile

  def watched(*args):
    run = compile(*args)

    def step(state, batch):
      held.append(sum(all(x is not y for y in others) for x in like()))
      if len(held) == 1:
        stopping.ask()
      return run(state, batch)

    return step

  monkeypatch.setattr(sft.step, 'compile', watched)
  # Truncate leaves the student in memory; training lets go of it.
  run = lambda: start(
      [*JUDGED, 'sft'],
      files={'assemble/train.jsonl': ROWS},
      sft__method='full',
      sft__epochs=40,
  )
  with pytest.raises(stopping.Stopped):
    run()
  stopping.forget()
  steps = summary(run(), 'sft')['steps']
  assert steps >= 3
  assert held == [3] * steps


@pytest.mark.slow
def test_a_merge_in_bfloat16_and_examples_longer_than_a_row(start, student):
  long = {**ROWS[0], 'id': 'long', 'output': 'It is so. ' * 100}
  run = start(
      ['sft'],
      files={'assemble/train.jsonl': [long, *ROWS]},
      sft__export_dtype='bfloat16',
  )
  facts = summary(run, 'sft')
  assert facts['export_dtype'] == 'bfloat16'
  assert 1e-4 < facts['export_logit_error']['max'] < 1.0
  raw = json.loads((run.path / 'sft/export/config.json').read_text())
  assert raw['torch_dtype'] == 'bfloat16'
  assert (facts['examples'], facts['too_long']) == (4, 1)
  # What is left out counts nowhere else.
  tokenizer = tokenizer_lib.load(student)
  num_tokens = 0
  for row in ROWS:
    prompt = tokenizer.chat.prompt(prompts.answer('brief', row['input']))
    text = prompt + row['output'] + tokenizer.chat.turn_end
    num_tokens += len(tokenizer.encode(text))
  assert facts['tokens'] == 2 * num_tokens
  assert 0 < facts['supervised_weight'] < num_tokens


@pytest.mark.slow
def test_some_projections_over_an_int8_base_in_split_rows(start, student):
  run = start(
      ['sft'],
      files={'assemble/train.jsonl': ROWS},
      mesh__sequence=2,
      mesh__fsdp=2,
      sft__targets=('q', 'down'),
      sft__quantize='int8',
      sft__remat='save_attention',
  )
  raw = json.loads((run.path / 'sft/adapter/adapter_config.json').read_text())
  assert sorted(raw['target_modules']) == ['down_proj', 'q_proj']
  model = hf_import.describe(student, dtype=jnp.float32)
  adapters, _ = hf_import.load_adapter(run.path / 'sft/adapter', model.config)
  assert set(adapters['layers']) == {'q', 'down'}
  before = hf_import.load(student, dtype=jnp.float32).params['layers']
  after = hf_import.load(run.path / 'sft/export', dtype=jnp.float32)
  for name, parts in after.params['layers'].items():
    kernel = parts.get('kernel')
    if kernel is not None:  # The export stands on weights of full precision.
      same = np.array_equal(kernel, before[name]['kernel'])
      assert same == (name not in ('q', 'down'))
  error = summary(run, 'sft')['export_logit_error']['max']
  assert 0 < error < 0.05


def test_a_row_that_cannot_be_trained_on_is_named(start):
  odd = {**ROWS[0], 'output': '<Begin_of_Prefix>It is.'}
  message = r"assemble/train.jsonl, row 4: the target has '<Begin_of_Prefix>' w"
  with pytest.raises(errors.DataError, match=message):
    start(['sft'], files={'assemble/train.jsonl': [*ROWS, odd]})


def test_rows_of_which_none_fits_are_counted_once(start):
  message = 'No example to train on: 3 have more than 16 tokens'
  with pytest.raises(errors.DataError, match=message):
    start(['sft'], files={'assemble/train.jsonl': ROWS}, sft__max_tokens=16)


def test_training_on_nothing_is_an_error(start):
  message = 'nothing to train on; assemble/r.* config.align.n or config.teach.l'
  with pytest.raises(errors.DataError, match=message):
    start(['sft'], files={'assemble/train.jsonl': []})


CURVE = {'truncate__search': 'curve', 'truncate__threshold': 0.5}


def nested(section, **values):
  """Returns a nested section of truncate with other values."""
  return {f'truncate__{section}': {**common.base().truncate[section], **values}}


def test_a_curve_tells_where_every_rule_would_cut(start):
  run = start(JUDGED, **CURVE, truncate__rule='stable', truncate__stable=2)
  rows = run.rows('truncate/prefixes.jsonl')
  for row in rows:
    said = [probe['enough'] for probe in row['probes']]
    first = said.index(True) + 1 if True in said else None
    assert set(row['cuts']) == {'first', 'stable', 'isotonic'}
    assert row['cuts']['first'] == first
    taken = row['sufficient_sentences'] if row['is_sufficient'] else None
    assert taken == row['cuts']['stable']
  facts = summary(run, 'truncate')
  pairs = [
      pair
      for row in rows
      for pair in itertools.pairwise(p['enough'] for p in row['probes'])
  ]
  falls = sum(a and not b for a, b in pairs)
  assert facts['violations'] == round(falls / len(pairs), 4)
  assert 0 <= facts['traces_with_violations'] <= 1
  assert facts['trunk_tokens'] < facts['tokens'] < facts['prompt_tokens']


def test_near_is_near_the_threshold(start):
  run = start(JUDGED, **CURVE)
  near = lambda at: [
      abs(p['margin'] - at) < 0.1
      for row in run.rows('truncate/prefixes.jsonl')
      for p in row['probes']
  ]
  share = lambda at: round(sum(near(at)) / len(near(at)), 4)
  margins = sorted(
      p['margin']
      for row in run.rows('truncate/prefixes.jsonl')
      for p in row['probes']
  )
  assert summary(run, 'truncate')['within_0.1_nat'] == share(0.0)
  middle = len(margins) // 2  # About half are nearer than 0.1 nat to the edge.
  edge = sum(margins[middle - 1 : middle + 1]) / 2 + 0.1
  assert share(edge) != share(0.0)
  shutil.rmtree(run.path)
  # The band's upper edge: from there on a verdict is enough.
  upper = float(1 / (1 + np.exp(-edge)))
  run = start(
      JUDGED,
      truncate__search='curve',
      truncate__threshold=upper - 0.01,
      truncate__abstain=0.01,
  )
  assert summary(run, 'truncate')['within_0.1_nat'] == share(edge)


def test_an_end_of_memory_leaves_its_trace(start, monkeypatch):
  """The second group does not fit: the files say so, and from which row on."""
  opened, take = [], trunk_scorer.TrunkScorer.open

  def scarce(self, trunks):
    opened.append(len(trunks))
    if len(trunks) > 1 and len(opened) > 1:
      raise memory.OutOfMemory('no room')
    return take(self, trunks)

  monkeypatch.setattr(trunk_scorer.TrunkScorer, 'open', scarce)
  run = start(JUDGED)
  assert opened == [2, 2, 1, 1]
  assert len(run.rows('truncate/prefixes.jsonl')) == 4
  facts = summary(run, 'truncate')
  assert facts['out_of_memory'] == {'halved': 1, 'narrowed': 0}
  (change,) = json.loads((run.path / 'manifest.json').read_text())['changes']
  assert change['changed'] == {'judging.halved': [0, 1]}
  assert change['rows'] == {'truncate': 2}


def test_a_shared_trunk_changes_no_row(start):
  run = start(JUDGED, **CURVE)
  rows = run.rows('truncate/prefixes.jsonl')
  shutil.rmtree(run.path)
  run = start(JUDGED, **CURVE, compute__shared_trunk=False)
  for row, plain in zip(rows, run.rows('truncate/prefixes.jsonl'), strict=True):
    assert row['sufficient_reasoning'] == plain['sufficient_reasoning']
    assert row['p_enough'] == pytest.approx(plain['p_enough'], abs=1e-5)
  assert not summary(run, 'truncate')['shared_trunk']


def test_calibration_on_the_rows_of_a_yardstick(start, tmp_path):
  run = start(JUDGED, **CURVE)
  raw = [r['probes'] for r in run.rows('truncate/prefixes.jsonl')]
  p = sorted(probe['p_enough'] for probes in raw for probe in probes)
  between = (p[3] + p[4]) / 2
  path = tmp_path / 'rows.jsonl'
  jsonl.write(path, [{'p_enough': x, 'label': int(x > between)} for x in p])
  shutil.rmtree(run.path)
  run = start(JUDGED, **CURVE, truncate__calibration_rows=str(path))
  rows = run.rows('truncate/prefixes.jsonl')
  assert [[probe['enough'] for probe in row['probes']] for row in rows] == [
      [probe['p_enough'] > between for probe in probes] for probes in raw
  ]
  facts = summary(run, 'truncate')['calibration']
  assert facts['num_rows'] == len(p)
  assert facts['threshold'] == pytest.approx(between, abs=1e-5)
  manifest = json.loads((run.path / 'manifest.json').read_text())
  assert 'truncate.calibration_rows' in manifest['inputs']


def test_a_verified_cut_is_proven_by_continuations(start):
  """A trace that says its answer first proves any prefix it has."""
  run = start(
      JUDGED,
      **CURVE,
      truncate__verdict='verified',
      **nested('verify', k=3, pass_rate=0.3, max_tokens=24, temperature=1.0),
  )
  rows = run.rows('truncate/prefixes.jsonl')
  for row in rows:
    *failed, last = row['rollouts']
    assert all(proof['passes'] < 1 for proof in failed)
    assert {proof['k'] for proof in row['rollouts']} == {3}
    if row['is_sufficient']:
      assert last['passes'] >= 1
      assert last['sentences'] == row['sufficient_sentences']
    else:
      assert (row['reason'], last['passes']) == ('no_prefix', 0)
  proofs = summary(run, 'truncate')['proofs']
  assert proofs['rollouts'] == 3 * proofs['cuts']
  assert any(row['is_sufficient'] for row in rows)


def test_a_gold_that_proves_nothing_leaves_the_labels_their_word(start):
  trace = {**fakes.traces(1)[0], 'answer': None}
  run = start(
      ['truncate'],
      files={'teach/traces.jsonl': [trace]},
      truncate__verdict='verified',
      truncate__threshold=0.01,
  )
  (row,) = run.rows('truncate/prefixes.jsonl')
  assert (row['status'], row['reason']) == ('kept', 'unverifiable')
  assert 'rollouts' not in row and row['sufficient_sentences'] == 1


def test_a_yardstick_is_laid_to_some_traces(start):
  run = start(
      JUDGED,
      **nested('yardstick', traces=3, cuts=2, k=2),
      **nested('verify', max_tokens=24, temperature=1.0),
  )
  rows = run.rows('truncate/yardstick.jsonl')
  assert len({row['id'] for row in rows}) == 3
  assert {row['k'] for row in rows} == {2}
  prefixes = {r['id']: r for r in run.rows('truncate/prefixes.jsonl')}
  for row in rows:
    prefix = prefixes[row['id']]
    assert row['chosen'] == (row['sentences'] == prefix['sufficient_sentences'])
    for probe in prefix['probes']:
      if probe['sentences'] == row['sentences']:
        assert row['p_enough'] == pytest.approx(probe['p_enough'], abs=1e-5)
  facts = summary(run, 'truncate')['yardstick']
  assert set(facts['judges']) == {*yardstick.JUDGES, 'rollouts'}
  assert {row['reply'] for row in rows} <= {0.0, 1.0}
  assert facts['cuts'] == len(rows) and facts['rollouts'] == 2 * len(rows)
  tokens = {k: v['tokens_per_trace'] for k, v in facts['judges'].items()}
  assert 0 < tokens['label'] < tokens['prior'] < tokens['rollouts']
  assert facts['out_of_memory'] == {'halved': 0, 'narrowed': 0}


def test_a_yardstick_s_rows_calibrate_the_next_run(start, tmp_path):
  run = start(
      JUDGED,
      **nested('yardstick', traces=4, cuts=3, k=1),
      **nested('verify', max_tokens=24, temperature=1.0),
  )
  rows = run.rows('truncate/yardstick.jsonl')
  # What passes is chance here: say it is what has risen most above its prior.
  rises = sorted(row['corrected'] for row in rows)
  edge = rises[len(rises) // 2]
  labelled = [row | {'label': int(row['corrected'] >= edge)} for row in rows]
  path = tmp_path / 'yardstick.jsonl'
  jsonl.write(path, labelled)
  shutil.rmtree(run.path)
  run = start(
      JUDGED,
      truncate__search='curve',
      truncate__rule='isotonic',
      truncate__calibration='prior',
      truncate__calibration_fit='platt',
      truncate__calibration_rows=str(path),
  )
  fitted = summary(run, 'truncate')['calibration']
  assert fitted['num_rows'] == len(rows) and fitted['prior']
  assert fitted['slope'] > 0 and fitted['threshold'] == 0.5
  # Where the fitted log-odds cross 0 is near where the labels do.
  crossing = -fitted['offset'] / fitted['slope']
  assert rises[0] <= crossing <= rises[-1]
  curves = {
      r['id']: [p['p_enough'] for p in r['probes']]
      for r in run.rows('truncate/prefixes.jsonl')
  }
  for row in run.rows('truncate/prefixes.jsonl'):
    fit = rules.fit_isotonic(curves[row['id']])
    cut = next((n for n, p in enumerate(fit, 1) if p >= 0.5), None)
    assert row['cuts']['isotonic'] == cut
    assert row['is_sufficient'] == (cut is not None)
    if cut is not None:
      assert row['sufficient_sentences'] == cut


def test_with_nothing_sufficient_the_context_bounds_the_whole(start):
  run = start(
      ['truncate', 'align', 'assemble'],
      files={'teach/traces.jsonl': [LONG]},
      truncate__too_long='fit',
      truncate__none_enough='whole',
      align__n=1,
      align__mode='draft',
      **NEVER,
  )
  (row,) = run.rows('truncate/prefixes.jsonl')
  longest = max(probe['sentences'] for probe in row['probes'])
  assert row['sufficient_sentences'] == longest < row['total_sentences'] == 60
  assert (row['status'], row['reason']) == ('kept', 'no_prefix')
  # The prompt that quotes it leaves the student little room, or none.
  tokenizer = tokenizer_lib.load(run.config.student.path)
  (completion,) = run.rows('align/completions.jsonl')
  room = max(512 - len(tokenizer.encode(completion['prompt'])), 0)
  assert room < 48
  assert len(tokenizer.encode(completion['output'])) <= room
  (rejected,) = run.rows('assemble/rejected.jsonl')
  reasons = ('length', 'wrong') if room else ('too_long',)
  assert rejected['reason'] in reasons


def test_a_prompt_longer_than_the_context_is_met_before_any_work(start):
  with pytest.raises(
      errors.ConfigError, match=r"config.prompts.judge: 'brief'"
  ):
    start(JUDGED, truncate__verdict='generate', truncate__max_tokens=470)


def test_where_the_labels_abstain_continuations_decide(start):
  run = start(
      JUDGED,
      **CURVE,
      truncate__abstain=0.49,
      truncate__abstained='verify',
      **nested('verify', k=2, max_tokens=24, temperature=1.0),
  )
  rows = run.rows('truncate/prefixes.jsonl')
  for row in rows:
    assert row['abstained'] == len(row['probes']) == len(row['rollouts'])
    for probe, proof in zip(row['probes'], row['rollouts'], strict=True):
      assert probe['enough'] == (proof['passes'] >= 1)
  facts = summary(run, 'truncate')
  assert facts['abstained'] == facts['proofs']['cuts'] == facts['probes']


def test_the_prior_of_each_question_is_subtracted(start):
  margins = lambda run: {
      (row['id'], p['sentences']): np.log(p['p_enough'] / (1 - p['p_enough']))
      for row in run.rows('truncate/prefixes.jsonl')
      for p in row['probes']
  }
  run = start(JUDGED, **CURVE)
  raw = margins(run)
  shutil.rmtree(run.path)
  run = start(JUDGED, **CURVE, truncate__calibration='prior')
  shifts = {}
  for (name, n), margin in margins(run).items():
    shifts.setdefault(name, []).append(raw[name, n] - margin)
  for values in shifts.values():  # One number per question.
    np.testing.assert_allclose(values, values[0], atol=1e-4)
  assert summary(run, 'truncate')['calibration']['prior']
