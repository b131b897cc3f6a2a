"""Reading files of rows record by record; nothing is guessed of a text file's values."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple


class CsvRecord(NamedTuple):
    """One record of a CSV file, the header too; blank lines are none.

    Attributes:
        line: the number of its first line, from 1.
        fields: its texts; a byte that is not UTF-8 is a lone surrogate.
        raw: its bytes, with a line end.
        position: the position in the file after it, in bytes.
        error: why it is not valid CSV; empty if it is.
    """

    line: int
    fields: list[str]
    raw: bytes
    position: int
    error: str = ""


def csv_records(file: IO[bytes], strict: bool = False) -> Iterator[CsvRecord]:
    """Yield the records of a CSV file. A record that is not valid CSV has an error, and the next ones follow.

    Args:
        strict: refuse what `csv.reader` reads by a guess, such as text behind a closing quotation mark.
    """
    lines: list[bytes] = []
    number = position = 0

    def texts() -> Iterator[str]:
        nonlocal number, position
        encoding = "utf-8-sig"
        for block in file:
            # a file may end its lines by a carriage return alone
            for line in (block,) if block.find(b"\r", 0, -2) < 0 else block.splitlines(keepends=True):
                number += 1
                position += len(line)
                lines.append(line)
                yield line.decode(encoding, "surrogateescape")
                encoding = "utf-8"

    reader = csv.reader(texts(), strict=strict)
    while True:
        start, error = number + 1, ""
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as refused:
            fields, error = [], str(refused)
        raw = lines[0] if len(lines) == 1 else b"".join(lines)
        lines.clear()
        if error or len(fields) > 1 or (fields and fields[0].strip()):  # a blank line is no record
            yield CsvRecord(start, fields, raw if raw.endswith(b"\n") else raw + b"\n", position, error)


def json_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes, int]]:
    """Yield the lines that are not blank: their number, from 1, their bytes, and the position after them in bytes."""
    position = 0
    for number, line in enumerate(file, 1):
        position += len(line)
        if not line.isspace():
            yield number, line, position


def open_parquet(file: IO[bytes]) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`; a stream is read whole."""
    import pyarrow.parquet as pq  # here: no other format needs it

    return pq.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))


def read_table(path: Path, empty_is_null: bool = False) -> Any:
    """Return the `pyarrow.Table` of a CSV or Parquet file.

    Args:
        empty_is_null: an empty text of a CSV file is a missing value, as pandas, and with it MLflow, reads it.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        import pyarrow.parquet as pq

        return pq.read_table(path)
    import pyarrow.csv as pa_csv

    return pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(strings_can_be_null=empty_is_null))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters of it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
