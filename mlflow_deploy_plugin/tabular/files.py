"""The formats of files of rows, by the endings of their names; opening files; reading them record by record."""

import csv
import io
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, get_args

from mlflow_deploy_plugin.errors import InvalidConfig

FileFormat = Literal["csv", "json", "jsonl", "parquet"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_SUFFIXES: Mapping[str, FileFormat] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def format_of(path: str) -> FileFormat | None:
    """Return the format that the name of a file says, if any."""
    return _SUFFIXES.get(Path(path).suffix.lower())


def output_format(path: str, given: FileFormat) -> FileFormat:
    """Return the format of an output file by its name; one without an ending has the format of the input.

    Raises:
        InvalidConfig: its ending is unknown.
    """
    kind, ending = format_of(path), Path(path).suffix
    if kind is None and ending:
        raise InvalidConfig(
            f"{path}: {ending} is none of the endings that are known, {' '.join(_SUFFIXES)}; say -O to choose"
        )
    return kind or given


@contextmanager
def open_input(path: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open the file, or standard input for `-`; raise InvalidConfig if it is missing or cannot be read."""
    if path == "-":
        yield stdin
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; only errors of open get this message
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be read: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def open_output(path: str, stdout: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a new file that replaces `path` at the end; `-` is standard output, written as it comes.

    Raises:
        InvalidConfig: the file cannot be written.
    """
    if path == "-":
        yield stdout
        stdout.flush()
        return
    try:
        with atomic_file(Path(path)) as file:
            yield file
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be written: {error.strerror or error}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when all of it is written; after an error `path` is as it was."""
    if path.exists() and not path.is_file():  # a pipe or a device cannot be replaced
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if target.exists():
                mode = target.stat().st_mode
            else:
                mask = os.umask(0)
                os.umask(mask)  # nothing else tells it
                mode = 0o666 & ~mask
            os.chmod(file.name, mode)
            os.replace(file.name, target)
        except BaseException:
            os.unlink(file.name)
            raise


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
    if format_of(str(path)) == "parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path)
    import pyarrow.csv as pa_csv

    return pa_csv.read_csv(path, convert_options=pa_csv.ConvertOptions(strings_can_be_null=empty_is_null))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters of it."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
