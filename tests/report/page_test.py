"""A page is written whatever a run left, and nothing in it is markup."""

import html.parser
import shutil

from etils import epath
import pytest

from palign_jax.core import errors, jsonl
from palign_jax.report import page, plots
from tests.report import fake_run

FIGURES = [
    'difficulty.png',
    'difficulty_1.png',
    'funnel.png',
    'lengths.png',
    'loss.png',
    'p_enough.png',
    'prefix_ratio.png',
    'scores.png',
]
INPUTS = {
    'teach': 'teach/traces.jsonl is not there',
    'truncate': 'truncate/prefixes.jsonl is not there',
    'align': 'align/completions.jsonl is not there',
    'assemble': 'assemble/train.jsonl is not there',
    'sft': 'sft/metrics.jsonl is not there',
    'grade': 'grade/scores.json is not there',
    'manifest.json': 'manifest.json is not there',
}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A whole run with its report; tests that change it work on a copy."""
  workdir = epath.Path(tmp_path_factory.mktemp('run'))
  page.render(workdir, fake_run.write(workdir))
  return workdir


@pytest.fixture
def undrawn(monkeypatch):
  """Leaves the figures out, which take most of the time."""
  picture = plots.Picture('<svg ></svg>', b'')
  monkeypatch.setattr(plots, 'drawn', lambda *args, **kwargs: picture)


class Strict(html.parser.HTMLParser):
  """Collects tags and addresses, and checks that every tag is closed."""

  void = {'meta', 'use', 'path'}

  def __init__(self, text: str):
    super().__init__()
    self.seen, self.open, self.addresses = set(), [], []
    self.feed(text)
    assert not self.open

  def handle_starttag(self, tag, attrs):
    self.seen.add(tag)
    self.addresses += [v for k, v in attrs if k in ('href', 'src')]
    self.addresses += [v for k, v in attrs if k == 'xlink:href']
    if tag not in self.void:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.seen.add(tag)
    self.addresses += [v for k, v in attrs if k == 'xlink:href']

  def handle_endtag(self, tag):
    if tag not in self.void:
      assert self.open.pop() == tag


def test_a_finished_run_gives_a_page_with_every_figure(finished):
  names = sorted(p.name for p in (finished / 'report').iterdir())
  assert names == sorted(FIGURES + ['index.html', 'report.md'])
  text = (finished / 'report/index.html').read_text()
  assert text.count('<svg ') == len(FIGURES)
  assert 'is not there' not in text
  markdown = (finished / 'report/report.md').read_text()
  assert all(f']({name})' in markdown for name in FIGURES)
  for name in FIGURES:
    assert (finished / 'report' / name).read_bytes().startswith(b'\x89PNG')


def test_the_page_needs_nothing_beside_it_and_is_well_formed(finished):
  parsed = Strict((finished / 'report/index.html').read_text())
  assert all(a.startswith('#') for a in parsed.addresses)
  assert not parsed.seen & {'script', 'img', 'link', 'iframe', 'b5'}


def test_the_same_run_gives_the_same_bytes(finished, tmp_path):
  again = epath.Path(tmp_path) / finished.name
  shutil.copytree(finished, again)
  page.render(again, fake_run.CONFIG)
  for path in (finished / 'report').iterdir():
    assert path.read_bytes() == (again / 'report' / path.name).read_bytes()


def nasty(workdir):
  """Makes every text of a small run the nasty one, ids and reasons too."""
  n = fake_run.NASTY
  both = {'question': n, 'answer': n, 'id': n}
  whole = n + ' ' + n
  jsonl.write(workdir / 'teach/traces.jsonl', [both | {'Long-CoT': whole}])
  prefix = both | {
      'sufficient_reasoning': n,
      'sufficient_sentences': 1,
      'total_sentences': 2,
      'prefix_ratio': 0.5,
      'is_sufficient': True,
      'probes': [{'sentences': 1, 'p_enough': 0.7}],
      'status': 'kept',
  }
  jsonl.write(workdir / 'truncate/prefixes.jsonl', [prefix])
  jsonl.write(
      workdir / 'align/completions.jsonl',
      [both | {'output': n, 'finish_reason': n}],
  )
  jsonl.write(
      workdir / 'assemble/rejected.jsonl', [both | {'output': n, 'reason': n}]
  )
  (workdir / 'assemble/train.jsonl').write_text('')
  jsonl.write_text(
      workdir / 'manifest.json', jsonl.dumps({n: n, 'inputs': {n: 'ab' * 32}})
  )
  jsonl.write_text(workdir / 'sft/summary.json', jsonl.dumps({n: n}))
  values = {'value': 0.5, 'low': 0.4, 'high': 0.6, 'n': 9, 'samples': 1}
  scores = {n: {'before': {'pass@1': values, n: values}}}
  jsonl.write_text(workdir / 'grade/scores.json', jsonl.dumps(scores))
  return {n: {n: n}}


def test_no_text_of_a_run_becomes_markup(tmp_path):
  workdir = epath.Path(tmp_path) / 'a<b>&"c"'
  page.render(workdir, nasty(workdir))
  text = (workdir / 'report/index.html').read_text()
  assert '<script' not in text
  assert '&lt;script&gt;alert(&quot;x&quot;)' in text
  assert 'a&lt;b&gt;&amp;&quot;c&quot;' in text
  assert '5 &lt; 7' in text and '\U0001f600' in text and '数学' in text
  # Replaced, as are control characters and halves of surrogate pairs.
  assert not set('\x00\u202e') & set(text)
  Strict(text)


def test_no_text_of_a_run_breaks_out_of_its_place_in_markdown(tmp_path):
  workdir = epath.Path(tmp_path) / 'run'
  page.render(workdir, nasty(workdir))
  text = (workdir / 'report/report.md').read_text()
  fence = None
  for line in text.splitlines():
    if fence is None and line.startswith('```'):
      fence = line.removesuffix('text')
      assert len(fence) == 5  # One more than the text's own.
    elif line == fence:
      fence = None
    elif fence is None:
      assert '<script' not in line
  assert fence is None


@pytest.mark.parametrize('missing', INPUTS)
@pytest.mark.usefixtures('undrawn')
def test_each_missing_input_is_named(finished, tmp_path, missing):
  workdir = epath.Path(tmp_path) / 'run'
  shutil.copytree(finished, workdir, ignore=shutil.ignore_patterns(missing))
  page.render(workdir, fake_run.CONFIG)
  assert INPUTS[missing] in (workdir / 'report/index.html').read_text()
  assert INPUTS[missing].split('/')[-1].replace('_', r'\_') in (
      (workdir / 'report/report.md').read_text()
  )


def test_an_empty_workdir_gives_a_page_that_says_so(tmp_path):
  workdir = epath.Path(tmp_path)
  page.render(workdir, {})
  text = (workdir / 'report/index.html').read_text()
  assert text.count('class="missing"') == 16
  assert 'has not been graded before and after' in text
  assert '<svg' not in text


def test_files_without_rows_give_a_page_too(finished, tmp_path):
  workdir = epath.Path(tmp_path)
  for path in (*finished.glob('*/*.jsonl'), *finished.glob('*/*/*.jsonl')):
    empty = workdir / path.relative_to(finished)
    empty.parent.mkdir(parents=True, exist_ok=True)
    empty.write_text('')
  page.render(workdir, fake_run.CONFIG)
  text = (workdir / 'report/index.html').read_text()
  assert 'No question has a trace or a prefix.' in text
  assert 'No prefix was kept.' in text
  assert 'No step has a finite loss.' in text
  assert 'There is no prefix to show.' in text


@pytest.mark.usefixtures('undrawn')
def test_samples_that_are_not_graded_still_have_lengths(finished, tmp_path):
  workdir = epath.Path(tmp_path)
  shutil.copytree(finished / 'sample', workdir / 'sample')
  page.render(workdir, fake_run.CONFIG)
  assert (workdir / 'report/lengths.png').exists()
  assert not (workdir / 'report/difficulty.png').exists()


def test_the_reference_codes_prefixes_are_enough(tmp_path):
  workdir = epath.Path(tmp_path)
  row = {
      'id': 7,
      'answer': '5',
      'question': '2 + 3?',
      'sufficient_reasoning': '2 and 3.',
      'sufficient_sentences': 1,
      'total_sentences': 4,
      'prefix_ratio': 0.25,
      'is_sufficient': True,
      'evaluator_response': '[ENOUGH]',
  }
  jsonl.write(workdir / 'truncate/prefixes.jsonl', [row])
  page.render(workdir, {})
  text = (workdir / 'report/index.html').read_text()
  assert '7: 25.0% of sentences kept' in text
  assert 'median 0.25' in text
  assert 'carry no probes' in text


@pytest.mark.usefixtures('undrawn')
def test_a_broken_input_is_named_with_its_line(finished, tmp_path):
  workdir = epath.Path(tmp_path) / 'run'
  shutil.copytree(finished, workdir)
  with (workdir / 'sft/metrics.jsonl').open('a') as f:
    f.write('{"step": \n')
  with pytest.raises(errors.DataError, match='metrics.jsonl, line 301'):
    page.render(workdir, fake_run.CONFIG)
  (workdir / 'grade/scores.json').write_text('[')
  (workdir / 'sft/metrics.jsonl').unlink()
  with pytest.raises(errors.DataError, match='scores.json: no valid JSON'):
    page.render(workdir, fake_run.CONFIG)


def test_an_unwritable_place_is_an_error_of_one_line(tmp_path):
  workdir = epath.Path(tmp_path)
  (workdir / 'report').write_text('a file where a folder should be')
  with pytest.raises(errors.DataError, match='index.html|report.md'):
    page.render(workdir, {})


def test_long_traces_and_many_samples_leave_the_page_small(tmp_path):
  workdir = epath.Path(tmp_path)
  config = fake_run.write(
      workdir, num_traces=60, num_problems=40, num_samples=4, repeats=90
  )
  page.render(workdir, config)
  traces = (workdir / 'teach/traces.jsonl').stat().length
  assert traces > 1_500_000
  assert (workdir / 'report/index.html').stat().length < 400_000
  assert (workdir / 'report/report.md').stat().length < 100_000
