"""The answer to a query as CSV, JSON Lines or Parquet, written as it comes."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime, time
from decimal import Decimal
from typing import IO, Any, Literal

import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidConfig

Form = Literal["csv", "json", "jsonl", "parquet"]
Write = Callable[[pa.RecordBatch], object]

_TIME = "%Y-%m-%dT%H:%M:%S"  # seconds have their fraction


@contextmanager
def exporting(form: Form, schema: pa.Schema, file: IO[bytes]) -> Iterator[Write]:
    """Writes batches of the schema into a file.

    CSV holds times as RFC 3339, lists and structures as JSON, bytes as base64; JSON, one array, and JSON Lines
    likewise, and null for NaN.

    Raises:
        InvalidConfig: the form has no room for a column's type, as for an interval in Parquet.
    """
    try:
        with _FORMS[form](schema, file) as write:
            yield write
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        shown = " ".join(str(error).split())
        raise InvalidConfig(
            f"the answer has no form in {form}: {shown}; CAST(… AS VARCHAR) makes a text of it"
        ) from None


def values_of(column: pa.Array) -> list[Any]:
    """[N] values; texts where Python has no such time, as of infinity or before the year 1."""
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError):
        values = column.cast(pa.string()).to_pylist()
    return values


@contextmanager
def _csv(schema: pa.Schema, file: IO[bytes]) -> Iterator[Write]:
    flat = pa.schema([(field.name, _flat_type(field.type)) for field in schema])
    with pyarrow.csv.CSVWriter(file, flat) as writer:
        yield lambda batch: writer.write_table(pa.table([_flat(column) for column in batch.columns], schema=flat))


def _objects(schema: pa.Schema, batch: pa.RecordBatch) -> list[bytes]:
    """A JSON object for each row."""
    columns = [_flat(column) if pa.types.is_timestamp(column.type) else column for column in batch.columns]
    rows = zip(*map(values_of, columns), strict=True)
    names = schema.names
    return [orjson.dumps(dict(zip(names, row, strict=True)), default=_as_json) for row in rows]


@contextmanager
def _jsonl(schema: pa.Schema, file: IO[bytes]) -> Iterator[Write]:
    yield lambda batch: file.write(b"\n".join([*_objects(schema, batch), b""]))


@contextmanager
def _json(schema: pa.Schema, file: IO[bytes]) -> Iterator[Write]:
    before = b"[\n"

    def write(batch: pa.RecordBatch) -> None:
        nonlocal before
        for row in _objects(schema, batch):
            file.write(before + row)
            before = b",\n"

    yield write
    file.write(b"\n]\n" if before == b",\n" else b"[]\n")


@contextmanager
def _parquet(schema: pa.Schema, file: IO[bytes]) -> Iterator[Write]:
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        yield writer.write_batch


def _flat_type(kind: pa.DataType) -> pa.DataType:
    is_plain = pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return pa.string() if not is_plain or pa.types.is_timestamp(kind) else kind


def _flat(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return pc.strftime(column.cast(pa.timestamp("us", column.type.tz)), _TIME + ("Z" if column.type.tz else ""))
    if _flat_type(column.type) == column.type:
        return column
    texts = [
        value if value is None or isinstance(value, str) else _text(_as_json(value)) for value in values_of(column)
    ]
    return pa.array(texts, pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=_as_json, ensure_ascii=False)


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    return value if isinstance(value, list | dict | str | int | float | bool) else str(value)


_FORMS: Mapping[Form, Callable[[pa.Schema, IO[bytes]], Any]] = {
    "csv": _csv,
    "json": _json,
    "jsonl": _jsonl,
    "parquet": _parquet,
}
