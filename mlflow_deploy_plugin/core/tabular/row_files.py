"""Detect, open, read and write files of rows. The format follows from the file's
ending, and rows are streamed.
"""

import base64
import contextlib
import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, get_args

import orjson

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.messages import one_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FileFormat = Literal["csv", "json", "jsonl", "parquet"]
FILE_FORMATS: tuple[FileFormat, ...] = get_args(FileFormat)
_SUFFIXES: Mapping[str, FileFormat] = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".log": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
SPARK_TIMES: Mapping[str, str] = {"coerce_int96_timestamp_unit": "us"}
"""The pyarrow option for Spark's times (Parquet's INT96). Times after the year 2262
would overflow in nanoseconds.
"""
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


def format_of(path: str) -> FileFormat | None:
    return _SUFFIXES.get(Path(path).suffix.lower())


def compression_of(path: str) -> str | None:
    return _COMPRESSIONS.get(Path(path).suffix.lower())


def output_format(path: str, default: FileFormat) -> FileFormat:
    """Return the format for a file's ending, or `default` without ending; raise
    InvalidConfig for unknown endings.
    """
    kind = format_of(path)
    ending = Path(path).suffix
    if kind is None and ending:
        raise InvalidConfig(
            f"{path}: {ending} is not a known ending ({' '.join(_SUFFIXES)}); set the format with "
            "-O",
        )
    return kind or default


@contextmanager
def open_input(path: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open the file, or standard input for `-`; raise InvalidConfig if the file cannot
    be read.
    """
    if path == "-":
        yield stdin
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - The file is closed below. Only errors of open get this message.
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be read: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def open_output(path: str, stdout: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` on exit, or use stdout for `-`; raise
    InvalidConfig if writing fails.
    """
    if path == "-":
        yield stdout
        stdout.flush()
        return
    try:
        with atomic_file(Path(path)) as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        folder = Path(path).parent
        if not folder.exists():
            reason = f"the folder {folder} does not exist"
        raise InvalidConfig(f"the file {path} cannot be written: {reason}") from None


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path` when it is completely written; after an error
    `path` is unchanged.
    """
    if path.exists() and not path.is_file():  # A pipe or a device cannot be replaced.
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    temporary = Path(f"{unfinished_stem(str(target))}.{os.urandom(4).hex()}")
    mode = target.stat().st_mode if target.exists() else None
    # The kernel removes the bits of the umask from this mode.
    made_with = 0o666 if mode is None else mode & 0o777

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, made_with)

    with open(temporary, "xb", opener=opener) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if mode is not None:
                os.chmod(temporary, mode)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise


def unfinished_stem(name: str) -> str:
    """Return the name of an unfinished file of `atomic_file` up to the last dot:
    `a/.b.csv` for `a/b.csv`.
    """
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}.{base}"


def json_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes, int]]:
    """Yield the lines that are not blank: the line number from 1, the bytes, and the
    byte position after the line.
    """
    position = 0
    for number, line in enumerate(file, 1):
        position += len(line)
        if not line.isspace():
            yield number, line, position


def open_parquet(file: IO[bytes]) -> "pq.ParquetFile":
    """Return a `pyarrow.parquet.ParquetFile`; a stream is read into memory first."""
    import pyarrow.parquet as pq  # Imported here, because only Parquet needs pyarrow.

    if not file.seekable():
        file = io.BytesIO(file.read())
    return pq.ParquetFile(file, **SPARK_TIMES)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, cut to 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


_TIME = "%Y-%m-%dT%H:%M:%S"  # In pyarrow, %S includes the fraction of the second.


@contextmanager
def value_writer(
    kind: FileFormat,
    file: IO[bytes],
    name: str,
) -> Iterator[Callable[[list[object]], object]]:
    """Yield a function that writes rows. A row is a mapping of columns, or a value of
    the column `name`. JSON is written as `{"predictions": […]}`, like the response of
    /invocations. CSV has a column for each value of a list: prediction_0, prediction_1.
    Raises InvalidRequest if rows have different columns or cannot be written as
    Parquet.
    """

    def named(row: object) -> Mapping[str, object]:
        return row if isinstance(row, Mapping) else {name: row}

    if kind == "json":
        with _json_array(file, b'{"predictions": [', b", ", b"]}\n") as write_items:
            yield lambda rows: write_items(map(orjson.dumps, rows))
    elif kind == "jsonl":
        yield lambda rows: file.write(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    elif kind == "csv":
        header: list[str] = []
        yield lambda rows: file.write(_csv_lines(map(named, rows), header))
    else:
        import pyarrow as pa  # Imported here, because only Parquet needs pyarrow.
        import pyarrow.parquet as pq

        # The rows wait in a temporary file until all column types are known.
        with tempfile.TemporaryFile() as waiting:
            schemas: list[pa.Schema] = []

            def write(rows: list[object]) -> None:
                table = pa.Table.from_pylist([named(row) for row in rows])
                schemas.append(table.schema)
                with pa.ipc.new_stream(waiting, table.schema) as stream:
                    stream.write_table(table)

            yield write
            try:
                schema = pa.unify_schemas(schemas, promote_options="permissive")
                waiting.seek(0)
                with pq.ParquetWriter(file, schema) as parquet:
                    for _ in schemas:
                        parts = [schema.empty_table(), pa.ipc.open_stream(waiting).read_all()]
                        parquet.write_table(pa.concat_tables(parts, promote_options="permissive"))
            except pa.ArrowException as error:
                raise InvalidRequest(
                    f"predictions cannot be written as Parquet: {str(error).splitlines()[0]}",
                ) from None


@contextmanager
def table_writer(
    kind: FileFormat,
    schema: "pa.Schema",
    file: IO[bytes],
    advice: str,
) -> Iterator[Callable[["pa.RecordBatch"], object]]:
    """Yield a function that writes batches of the schema. In CSV, JSON and JSON Lines,
    times are written as RFC 3339 and bytes as base64. In CSV, lists and structures are
    JSON text. In JSON, NaN is null. Raises InvalidConfig with the advice if the format
    does not support a column's type, such as an interval in Parquet.
    """
    import pyarrow as pa  # Imported here, because `value_writer` needs pyarrow only for Parquet.
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if kind == "csv":
            flat = pa.schema([(field.name, _csv_type(field.type)) for field in schema])
            with pyarrow.csv.CSVWriter(file, flat) as csv_writer:
                yield lambda batch: csv_writer.write_table(
                    pa.table([_csv_column(column) for column in batch.columns], schema=flat),
                )
        elif kind == "json":
            with _json_array(file, b"[\n", b",\n", b"\n]\n") as write_items:
                yield lambda batch: write_items(_json_objects(batch))
        elif kind == "jsonl":
            yield lambda batch: file.write(b"\n".join([*_json_objects(batch), b""]))
        else:
            with pq.ParquetWriter(file, schema, compression="zstd") as parquet_writer:
                yield parquet_writer.write_batch
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise InvalidConfig(
            f"the result cannot be written as {kind}: {one_line(error)}; {advice}",
        ) from None


def values_of(column: "pa.Array") -> list[object]:
    """Return the [N] values of a column, as texts if Python cannot represent a time,
    such as infinity or the year 0.
    """
    try:
        values: list[object] = column.to_pylist()
    except (OverflowError, ValueError):
        values = column.cast("string").to_pylist()
    return values


@contextmanager
def _json_array(
    file: IO[bytes],
    opening: bytes,
    separator: bytes,
    closing: bytes,
) -> Iterator[Callable[[Iterable[bytes]], None]]:
    """Yield a function that writes items of a JSON array."""
    before = opening

    def write(items: Iterable[bytes]) -> None:
        nonlocal before
        for item in items:
            file.write(before + item)
            before = separator

    yield write
    # An array without items is on one line.
    file.write(closing if before == separator else opening.rstrip() + closing.lstrip())


def _csv_lines(
    rows: Iterable[Mapping[str, object]],
    header: list[str],
) -> bytes:
    """Return the rows as lines of a CSV file. An empty `header` is filled and becomes
    the first line.

    A list has a column for each value. Booleans and nested values become JSON; None is
    written as an empty field.
    """
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells: dict[str, object] = {}
        for name, value in row.items():
            parts = {name: value}
            if isinstance(value, list):
                parts = {f"{name}_{n}": item for n, item in enumerate(value)}
            for part, cell in parts.items():
                is_json = isinstance(cell, bool | list | dict)
                cells[part] = orjson.dumps(cell).decode() if is_json else cell
        if not header:
            header.extend(cells)
            lines.writerow(header)
        if list(cells) != header:
            raise InvalidRequest(
                f"predictions have different columns: {', '.join(header)}, and {', '.join(cells)}",
            )
        lines.writerow(cells.values())
    return text.getvalue().encode()


def _json_objects(batch: "pa.RecordBatch") -> list[bytes]:
    """Return each row as a JSON object."""
    import pyarrow as pa

    columns = []
    for column in batch.columns:
        if pa.types.is_timestamp(column.type):
            column = _csv_column(column)
        columns.append(values_of(column))
    names = batch.schema.names
    lines = []
    for row in zip(*columns, strict=True):
        record = dict(zip(names, row, strict=True))
        lines.append(orjson.dumps(record, default=_json_value))
    return lines


def _csv_type(kind: "pa.DataType") -> "pa.DataType":
    """Return the type of a column in CSV: a text for times and nested values."""
    import pyarrow as pa

    is_plain = (
        pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    )
    if not is_plain or pa.types.is_timestamp(kind):
        return pa.string()
    return kind


def _csv_column(column: "pa.Array") -> "pa.Array":
    """Return a column for CSV: times as texts in RFC 3339, nested values as JSON."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(column.type):
        zone = "UTC" if column.type.tz else None
        # Without the cast, local time would be written.
        column = column.cast(pa.timestamp(column.type.unit, zone))
        # A time with nanoseconds cannot be cast and is unchanged.
        with contextlib.suppress(pa.ArrowInvalid):
            column = column.cast(pa.timestamp("us", zone))
        form = f"{_TIME}Z" if zone else _TIME
        return pc.strftime(column, form)
    if _csv_type(column.type) == column.type:
        return column
    texts: list[str | None] = []
    for value in values_of(column):
        plain = None if value is None else _json_value(value)
        if not isinstance(plain, str | None):
            plain = json.dumps(plain, default=_json_value, ensure_ascii=False)
        texts.append(plain)
    return pa.array(texts, pa.string())


def _json_value(value: object) -> object:
    """Return a value that JSON can represent: bytes in base64, and times and other
    values as texts.
    """
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, list | dict | str | int | float | bool):
        return value
    return str(value)
