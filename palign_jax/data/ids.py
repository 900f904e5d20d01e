"""Every row has an id, and no two have the same."""

from collections.abc import Sequence
from typing import Any

from palign_jax.core import errors


def assign(
    rows: Sequence[dict[str, Any]], field: str, *, source: str
) -> list[str]:
  """Returns one id for each row: its own, as text, or else its index.

  Args:
    rows: Records in order.
    field: Where rows keep their ids; '' if they have none.
    source: Where the rows come from, for messages.

  Returns:
    Distinct ids.  The index (from 0) serves where `field` is '' and, as in the
    reference, where no row has an `id`.

  Raises:
    DataError: If a row has no id, one that is neither text nor a whole number,
      or that of another row.
  """
  if not field or (field == 'id' and not any(field in row for row in rows)):
    return [str(index) for index in range(len(rows))]
  seen: dict[str, int] = {}
  for number, row in enumerate(rows, 1):
    at = f'{source}, row {number}'
    if field not in row:
      raise errors.DataError(
          f'{at}: no {field!r} in {sorted(row)}; give every row one, or choose'
          ' another field of ids, or none.'
      )
    value = row[field]
    if isinstance(value, bool) or not isinstance(value, str | int):
      raise errors.DataError(
          f'{at}: the {field!r} is {value!r} ({type(value).__name__}); write a'
          ' string or a whole number.'
      )
    first = seen.setdefault(str(value), number)
    if first != number:
      raise errors.DataError(
          f'{at}: the {field!r} {value!r} is that of row {first} too; give each'
          ' its own, or choose another field of ids, or none.'
      )
  return list(seen)
