"""Prose is no answer; spellings of one answer meet in one form."""

import pytest

from palign_jax.grading import answers


@pytest.mark.parametrize(
    'answer, verifiable',
    [
        ('25', True),
        (r'\frac{1}{2} \text{ or } \sqrt{3}', True),
        ('Evelyn', True),
        ('∞', True),
        (None, False),
        ('', False),
        (' $?$ ', False),
        (
            'Suppose that the claim fails for some group; then by induction on'
            ' the order there is a smaller one for which it fails as well.',
            False,
        ),
        ('1 + ' * 200, False),
    ],
)
def test_is_verifiable(answer, verifiable):
  assert answers.is_verifiable(answer) is verifiable


@pytest.mark.parametrize(
    'answer, form',
    [
        ('025', '25'),
        ('25.0', '25'),
        ('+25.', '25'),
        ('-0.50', '-0.5'),
        ('0', '0'),
        ('00', '0'),
        ('$ 1 , 2 $', '1,2'),
        (r'\left(1, \dfrac 12\right)', r'(1,\frac12)'),
    ],
)
def test_canonical(answer, form):
  assert answers.canonical(answer) == form
