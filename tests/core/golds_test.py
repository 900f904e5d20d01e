"""Golds of every spelling become one short string; the last box is found."""

import time

import pytest

from palign_jax.core import errors, golds


@pytest.mark.parametrize(
    'text, box',
    [
        (r'\boxed{1} then \boxed{2}', '2'),
        (r'\boxed{\frac{1}{2}}.', r'\frac{1}{2}'),
        (r'\boxed{\{1, 2\}}', r'\{1, 2\}'),
        (r'\boxed {7}', '7'),
        (r'\\boxed{7}', '7'),
        (r'x \\\boxed{7}', '7'),
        (r'\boxed{\boxed{3}}', '3'),
        (r'} { \boxed{5} }', '5'),
        (r'\boxed{4} and \boxed{5', '4'),
        (r'\boxed{a \boxed{4}', '4'),
        (r'\boxed{abc', None),
        (r'\fbox{42}', None),
        ('no box', None),
        ('', None),
    ],
)
def test_last_boxed(text, box):
  assert golds.last_boxed(text) == box


def test_a_text_that_loops_costs_no_more_than_its_length():
  start = time.monotonic()
  assert golds.last_boxed(r'\boxed{1} ' + r'\boxed{ ' * 100_000) == '1'
  assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    'value, answer',
    [
        (70, '70'),
        (142.0, '142'),
        (0.25, '0.25'),
        (-3.0, '-3'),
        ('025', '025'),
        (' 5 ', '5'),
        ('$5$', '5'),
        (r'$$\frac12$$', r'\frac12'),
        ('$a$ or $b$', '$a$ or $b$'),
        ('$', '$'),
        ('She has 2*9=<<2*9=18>>18 left.\n#### 18', '18'),
        ('... so\n####  $1,234 \n', '$1,234'),
        (r'We get \[x = \boxed{\frac{1}{4}}.\] Done.', r'\frac{1}{4}'),
        ('A long story.\n\nAnswer: D', 'D'),
        ('### Answer: DUODENA \n ### Explanation: some guts', 'DUODENA'),
        ('Suppose not. Then n > n.', 'Suppose not. Then n > n.'),
        ('', ''),
    ],
)
def test_normalise(value, answer):
  assert golds.normalise(value, at='x') == answer


@pytest.mark.parametrize('value', [True, None, float('nan'), ['5'], {'a': 1}])
def test_no_answer_at_all(value):
  with pytest.raises(errors.DataError, match=r'f\.jsonl, row 3: the answer is'):
    golds.normalise(value, at='f.jsonl, row 3')
