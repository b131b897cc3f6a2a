"""Rows of text in columns."""

from collections.abc import Iterator, Sequence


def align_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """One line a row; each column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """One line that a terminal only shows: what stands in it was typed by anybody."""
    return "".join(one if one.isprintable() else " " for one in text)
