"""Read the records of a CSV file with their positions and errors, without pyarrow,
which the server does not import.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from typing import IO, NamedTuple

MISSING_TEXTS = frozenset(
    {
        "NA",
        "N/A",
        "n/a",
        "<NA>",
        "#NA",
        "#N/A",
        "#N/A N/A",
        "NULL",
        "null",
        "None",
        "NaN",
        "nan",
        "-NaN",
        "-nan",
    }
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"},
)
"""The texts that pandas reads as missing values. In a string column, these texts are
ordinary values: NA is Namibia.
"""


class CsvRecord(NamedTuple):
    """A record of a CSV file, or its header. A blank line is not a record.

    Attributes:
        line: the number of the record's first line, from 1.
        fields: the texts of the fields; a byte that is not UTF-8 is decoded as a lone
            surrogate.
        raw: the bytes of the record, including a line end.
        position: the position in the file after the record, in bytes.
        error: the reason why the record is not valid CSV; empty if the record is valid.
    """

    line: int
    fields: list[str]
    raw: bytes
    position: int
    error: str = ""

    def fault(
        self,
        width: int,
        positions: Iterable[int] | None = None,
    ) -> str:
        """Return the reason why the record is not a row of `width` columns, or "". Only
        columns at `positions` must be UTF-8.
        """
        if self.error:
            return f"not valid CSV: {self.error}"
        if len(self.fields) != width:
            return f"{len(self.fields)} fields; the header has {width}"
        fields = self.fields
        if positions is not None:
            fields = [fields[index] for index in positions]
        # A lone surrogate, which stands for a byte that is not UTF-8, cannot be
        # encoded.
        try:
            "".join(fields).encode()
        except UnicodeEncodeError:
            return "not UTF-8, the required encoding of CSV files"
        return ""


def csv_records(file: IO[bytes]) -> Iterator[CsvRecord]:
    """Yield the records of a CSV file. An invalid record has an `error`, and reading
    continues with the next line. If a quotation mark is not closed, the csv module
    reads later lines into the same value, up to the next mark, the end of the file or
    `csv.field_size_limit`. Only the first of these lines is invalid, so the later lines
    are read again.
    """
    lines: list[bytes] = []
    again: deque[bytes] = deque()
    number = 0
    position = 0

    def physical() -> Iterator[bytes]:
        for block in file:
            index = block.find(b"\r")
            if index < 0 or block[index:] == b"\r\n":
                yield block
            else:
                yield from block.splitlines(keepends=True)  # Some lines end with \r only.

    unread = physical()

    def texts() -> Iterator[str]:
        nonlocal number, position
        while line := again.popleft() if again else next(unread, b""):
            number += 1
            position += len(line)
            lines.append(line)
            encoding = "utf-8" if number > 1 else "utf-8-sig"
            yield line.decode(encoding, "surrogateescape")

    reader = csv.reader(texts(), strict=True)
    while True:
        start = number + 1
        error = ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as refused:
            fields = []
            error = (
                f"{refused}; quotation marks must enclose a value, and marks inside it must be "
                "doubled"
            )
            again.extendleft(reversed(lines[1:]))
            number = start
            position -= sum(map(len, lines[1:]))
            del lines[1:]
            # The old reader may have reached the end of the file.
            reader = csv.reader(texts(), strict=True)
        raw = lines[0] if len(lines) == 1 else b"".join(lines)
        lines.clear()
        if not raw.isspace():  # Blank lines are not records.
            if not raw.endswith(b"\n"):
                raw += b"\n"
            yield CsvRecord(start, fields, raw, position, error)
