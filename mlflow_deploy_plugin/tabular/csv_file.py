"""The records of a CSV file, each with its place and its fault. Needs no pyarrow, which the server does not import."""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

MISSING_TEXTS = frozenset(
    {"NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"}
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)
"""The texts that pandas reads as a missing value. In a column of strings they are strings: NA is Namibia."""


class CsvRecord(NamedTuple):
    """A record of a CSV file, or its header; a blank line is not a record.

    Attributes:
        line: the number of its first line, from 1.
        fields: its texts; a byte that is not UTF-8 is a lone surrogate.
        raw: its bytes, with a line end.
        position: the position in the file after it, in bytes.
        error: the reason why it is not valid CSV; empty if it is valid.
    """

    line: int
    fields: list[str]
    raw: bytes
    position: int
    error: str = ""

    def fault(self, width: int, positions: Iterable[int] | None = None) -> str:
        """Return why the record is not a row of `width` columns, or "". Of the columns, `positions` are read."""
        if self.error:
            return f"not valid CSV: {self.error}"
        if len(self.fields) != width:
            return f"{len(self.fields)} fields; the header has {width}"
        try:
            "".join(self.fields if positions is None else (self.fields[place] for place in positions)).encode()
        except UnicodeEncodeError:  # a byte that is not UTF-8 is a lone surrogate
            return "not UTF-8, which CSV files have to be written in"
        return ""


def csv_records(file: IO[bytes]) -> Iterator[CsvRecord]:
    """Yield the records of a CSV file. A record that is not valid CSV has an error, and the next ones follow.

    A quotation mark that is not closed takes later lines into its value, up to the next mark, the end of the file or
    `csv.field_size_limit`. Only its own line is wrong: the later lines are read again.
    """
    lines: list[bytes] = []
    again: deque[bytes] = deque()
    number = position = 0

    def physical() -> Iterator[bytes]:
        for block in file:
            place = block.find(b"\r")
            # Lines may end with only a carriage return
            yield from (block,) if place < 0 or block[place:] == b"\r\n" else block.splitlines(keepends=True)

    unread = physical()

    def texts() -> Iterator[str]:
        nonlocal number, position
        while line := again.popleft() if again else next(unread, b""):
            number += 1
            position += len(line)
            lines.append(line)
            yield line.decode("utf-8" if number > 1 else "utf-8-sig", "surrogateescape")

    reader = csv.reader(texts(), strict=True)
    while True:
        start, error = number + 1, ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as refused:
            fields, error = [], f"{refused}; quotation marks stand in pairs around a value, and are doubled in it"
            again.extendleft(reversed(lines[1:]))
            number = start
            position -= sum(map(len, lines[1:]))
            del lines[1:]
            reader = csv.reader(texts(), strict=True)  # the one before may have ended with the file
        raw = lines[0] if len(lines) == 1 else b"".join(lines)
        lines.clear()
        if not raw.isspace():  # a blank line is not a record
            yield CsvRecord(start, fields, raw if raw.endswith(b"\n") else raw + b"\n", position, error)
