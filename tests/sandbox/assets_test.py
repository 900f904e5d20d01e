"""What ships with the sandbox: small, its evaluation problems never taught."""

import pathlib

from configs import sandbox as recipe
import palign_jax
from palign_jax.core import jsonl
from palign_jax.sandbox import benchmark, corpus, world

ASSETS = pathlib.Path(palign_jax.__file__).parent / 'sandbox/assets'


def marks(name):
  """The fingerprint of each question of a file, read from its words."""
  rows = jsonl.read(ASSETS / name)
  stories = [world.read_question(row['question']) for row in rows]
  return [world.fingerprint(*story) for story in stories]


def test_no_evaluation_problem_is_trained_on():
  held_out, taught = marks('benchmark.jsonl'), marks('questions.jsonl')
  assert len(set(held_out)) == 500
  assert all(mark % 8 == 0 for mark in held_out)
  assert not any(mark % 8 == 0 for mark in taught)
  assert not set(held_out) & set(taught)


def test_nor_in_the_rows_that_the_models_were_trained_on():
  held_out = set(marks('benchmark.jsonl'))
  config = recipe.get_config()
  for run in config.runs:
    rows = corpus.Corpus(
        corpus.CorpusConfig(
            kinds={'chain': 1.0, 'judge': 1.0},
            steps={int(k): w for k, w in run['steps'].items()},
            seed=config.seed,
        )
    )
    for i in range(run['first_row'], run['first_row'] + 200):
      story = world.read_question(rows[i]['question'])
      assert world.split_of(*story) == 'train'
      assert world.fingerprint(*story) not in held_out


def test_the_files_are_those_of_the_recipe():
  config = recipe.get_config()
  for name in ('questions', 'benchmark'):
    rows = list(benchmark.questions(**config[name].to_dict()))
    assert jsonl.read(ASSETS / f'{name}.jsonl') == rows


def test_assets_are_small():
  size = sum(p.stat().st_size for p in ASSETS.rglob('*') if p.is_file())
  assert size <= 8e6
