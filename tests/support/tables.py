"""Rows as columns."""

from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any


def columns_of(
    rows: Sequence[Mapping[str, Any]], names: Iterable[str] = ()
) -> dict[str, list[Any]]:
    """Return the values by column: of these names, or of all names of the first row."""
    return {name: list(map(itemgetter(name), rows)) for name in names or rows[0]}
