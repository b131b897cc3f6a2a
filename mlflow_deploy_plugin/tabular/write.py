"""Writing files of rows as they come: values without a schema, and Arrow batches of one schema."""

import base64
import csv
import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import IO, TYPE_CHECKING, Any

import orjson

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.tabular.files import FileFormat

if TYPE_CHECKING:
    import pyarrow as pa

_TIME = "%Y-%m-%dT%H:%M:%S"  # seconds have their fraction


@contextmanager
def value_writer(kind: FileFormat, file: IO[bytes], name: str) -> Iterator[Callable[[list[Any]], Any]]:
    """Yield a function that writes rows, each a mapping of columns, or a value of the column `name`.

    JSON is `{"predictions": […]}`, as /invocations answers. A CSV file has a column for each value of a list:
    prediction_0, prediction_1.

    Raises:
        InvalidRequest: rows have different columns, or do not make a Parquet file.
    """

    def named(row: Any) -> Any:
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
        with _parquet_of_values(file) as write_rows:
            yield lambda rows: write_rows([named(row) for row in rows])


@contextmanager
def table_writer(kind: FileFormat, schema: "pa.Schema", file: IO[bytes]) -> Iterator[Callable[["pa.RecordBatch"], Any]]:
    """Yield a function that writes batches of the schema.

    CSV holds times as RFC 3339, lists and structures as JSON, bytes as base64. JSON, one array, and JSON Lines do
    likewise, and have null for NaN.

    Raises:
        InvalidConfig: the format has no room for a column's type, such as an interval in Parquet.
    """
    import pyarrow as pa  # here: values without a schema need it for Parquet alone
    import pyarrow.csv
    import pyarrow.parquet as pq

    try:
        if kind == "csv":
            flat = pa.schema([(field.name, _csv_type(field.type)) for field in schema])
            with pyarrow.csv.CSVWriter(file, flat) as csv_writer:
                yield lambda batch: csv_writer.write_table(
                    pa.table([_csv_column(column) for column in batch.columns], schema=flat)
                )
        elif kind == "json":
            with _json_array(file, b"[\n", b",\n", b"\n]\n", b"[]\n") as write_items:
                yield lambda batch: write_items(_json_objects(batch))
        elif kind == "jsonl":
            yield lambda batch: file.write(b"\n".join([*_json_objects(batch), b""]))
        else:
            with pq.ParquetWriter(file, schema, compression="zstd") as parquet_writer:
                yield parquet_writer.write_batch
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        shown = " ".join(str(error).split())
        raise InvalidConfig(
            f"the answer has no form in {kind}: {shown}; CAST(… AS VARCHAR) makes a text of it"
        ) from None


def values_of(column: "pa.Array") -> list[Any]:
    """Return [N] values; texts if Python has no such time, such as infinity or one before the year 1."""
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        values = column.cast("string").to_pylist()
    return values


@contextmanager
def _json_array(
    file: IO[bytes], opening: bytes, separator: bytes, closing: bytes, empty: bytes | None = None
) -> Iterator[Callable[[Iterable[bytes]], None]]:
    """Yield a function that writes items of an array. `empty`, if given, is the whole array without items."""
    before = opening
    if empty is None:
        file.write(opening)
        before = b""

    def write(items: Iterable[bytes]) -> None:
        nonlocal before
        for item in items:
            file.write(before + item)
            before = separator

    yield write
    file.write(closing if empty is None or before == separator else empty)


def _csv_lines(rows: Iterable[Mapping[str, Any]], header: list[str]) -> bytes:
    """Return lines of a CSV file; the first call also fills and writes the header."""
    text = io.StringIO(newline="")
    lines = csv.writer(text, lineterminator="\n")
    for row in rows:
        cells: dict[str, Any] = {}
        for name, value in row.items():
            parts = {f"{name}_{n}": one for n, one in enumerate(value)} if isinstance(value, list) else {name: value}
            # booleans and nested values as JSON, an empty field for None
            cells |= {
                part: orjson.dumps(one).decode() if isinstance(one, bool | list | dict) else one
                for part, one in parts.items()
            }
        if not header:
            header.extend(cells)
            lines.writerow(header)
        if list(cells) != header:
            raise InvalidRequest(f"predictions have different columns: {', '.join(header)}, and {', '.join(cells)}")
        lines.writerow(cells.values())
    return text.getvalue().encode()


@contextmanager
def _parquet_of_values(file: IO[bytes]) -> Iterator[Callable[[list[Mapping[str, Any]]], None]]:
    """Yield a function that writes rows. A column's type is known after the last one; they wait in a temporary file."""
    import pyarrow as pa  # here: no other format needs it
    import pyarrow.parquet as pq

    with tempfile.TemporaryFile() as waiting:
        schemas: list[pa.Schema] = []

        def write(rows: list[Mapping[str, Any]]) -> None:
            table = pa.Table.from_pylist(rows)
            schemas.append(table.schema)
            with pa.ipc.new_stream(waiting, table.schema) as stream:
                stream.write_table(table)

        yield write
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
            waiting.seek(0)
            with pq.ParquetWriter(file, schema) as parquet:
                for _ in schemas:
                    table = pa.ipc.open_stream(waiting).read_all()
                    columns = [
                        table.column(field.name)
                        if field.name in table.column_names
                        else pa.nulls(len(table), field.type)
                        for field in schema
                    ]
                    parquet.write_table(pa.Table.from_arrays(columns, names=schema.names).cast(schema))
        except pa.ArrowException as error:
            raise InvalidRequest(f"the predictions do not make a Parquet file: {str(error).splitlines()[0]}") from None


def _json_objects(batch: "pa.RecordBatch") -> list[bytes]:
    """Return a JSON object for each row."""
    import pyarrow as pa

    columns = [_csv_column(column) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
    rows = zip(*map(values_of, columns), strict=True)
    names = batch.schema.names
    return [orjson.dumps(dict(zip(names, row, strict=True)), default=_json_value) for row in rows]


def _csv_type(kind: "pa.DataType") -> "pa.DataType":
    import pyarrow as pa

    is_plain = pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.string() if not is_plain or pa.types.is_timestamp(kind) else kind


def _csv_column(column: "pa.Array") -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(column.type):
        return pc.strftime(column.cast(pa.timestamp("us", column.type.tz)), _TIME + ("Z" if column.type.tz else ""))
    if _csv_type(column.type) == column.type:
        return column
    texts: list[str | None] = []
    for value in values_of(column):
        plain = None if value is None else value if isinstance(value, str) else _json_value(value)
        is_text = plain is None or isinstance(plain, str)
        texts.append(plain if is_text else json.dumps(plain, default=_json_value, ensure_ascii=False))
    return pa.array(texts, pa.string())


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value if isinstance(value, list | dict | str | int | float | bool) else str(value)
