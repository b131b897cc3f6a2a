"""Rows as columns."""

from operator import itemgetter


def columns_of(rows, names=()):
    """Return the values by column: of these names, or of all names of the first row."""
    return {name: list(map(itemgetter(name), rows)) for name in names or rows[0]}
