"""What is told of an error is one line."""

import pytest

from palign_jax.core import errors


@pytest.mark.parametrize(
    'error, line',
    [
        (errors.DataError('x.jsonl: empty.'), 'x.jsonl: empty.'),
        (
            PermissionError(13, 'Permission denied', 'x'),
            'x: Permission denied.',
        ),
        (OSError(5, 'Input/output error'), 'a file: Input/output error.'),
        (OSError('odd'), 'a file: odd.'),
    ],
)
def test_line(error, line):
  assert errors.line(error) == line
