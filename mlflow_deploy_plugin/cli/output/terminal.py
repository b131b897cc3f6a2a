"""Lines for a terminal: progress on standard error, rows in columns, text that only prints."""

from collections.abc import Iterable, Iterator, Sequence

import click


def show_progress(line: str) -> None:
    """Print a line about the work on standard error, which leaves standard output to the result."""
    click.echo(line, err=True)


def show_lines(lines: Iterable[str]) -> None:
    """Print lines on standard output."""
    for line in lines:
        click.echo(line)


def align_columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Yield one line for each row; a column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def printable(text: str) -> str:
    """Return the text without control characters: anybody may have typed it, and a terminal must only show it."""
    return "".join(one if one.isprintable() else " " for one in text)
