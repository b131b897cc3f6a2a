"""Files of labels: CSV, JSON Lines or Parquet, row by row. A bad row does not spoil the others.

A row names its prediction by the columns `prediction_id` and, if the request had several rows, `row`; or by key
columns, such as the flight and the day. A line of JSON Lines may also be an entry of `POST /feedback`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import orjson
import pyarrow as pa

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.runtime import as_text
from mlflow_deploy_plugin.server import Feedback, protocols
from mlflow_deploy_plugin.tabular import FileFormat, csv_records, json_lines, open_parquet

PREDICTION_ID, ROW, LABEL = "prediction_id", "row", "label"
_JSON = "application/json"
_ROWS = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17})(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a file that hold labels and name their rows.

    Attributes:
        key: the columns that name the row; if empty, `prediction_id` and `row` do.
        numbers: the key columns that hold numbers in the log: a CSV file's 7.0 is their 7.
    """

    key: tuple[str, ...] = ()
    label: str = LABEL
    prediction_id: str = PREDICTION_ID
    row: str = ROW
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelEntry:
    """A label, and its place in the file: line 7, row 12 (from 0)."""

    number: int
    place: str
    feedback: Feedback


@dataclass(frozen=True)
class BadRow:
    """A row that is not a label, why, and its content."""

    place: str
    why: str
    content: Any


class _NotALabel(Exception):
    """The row is not a label; the text says why."""


@dataclass(frozen=True)
class _Row:
    """A row of the file: its values by column, or why it has none; `content` is shown if it is bad."""

    number: int
    place: str
    values: dict[str, Any] | _NotALabel
    content: Any


def read_label_file(
    file: IO[bytes], name: str, kind: FileFormat, columns: LabelColumns
) -> Iterator[LabelEntry | BadRow]:
    """Yield the labels of an open CSV, JSON Lines or Parquet file, in order.

    Raises:
        InvalidConfig: a column is missing, or the file is not of this format at all.
    """
    if kind == "csv":
        rows = _csv_rows(file, name, columns)
    else:
        rows = _json_rows(file) if kind == "jsonl" else _parquet_rows(file, name, columns)
    while some := list(islice(rows, _ROWS)):
        yield from _check([(row, _document(row.values, columns, kind)) for row in some])


def _check(documents: Sequence[tuple[_Row, dict[str, Any] | _NotALabel]]) -> Iterator[LabelEntry | BadRow]:
    """Apply the rules of `POST /feedback`: to all at once, and one by one if a row breaks a rule."""
    good = [document for _, document in documents if isinstance(document, dict)]
    try:
        decoded = iter(_decode(good) if good else ())
    except InvalidRequest:
        decoded = None
    for row, document in documents:
        if isinstance(document, _NotALabel):
            yield BadRow(row.place, str(document), row.content)
        elif decoded is not None:
            yield LabelEntry(row.number, row.place, next(decoded))
        else:
            try:
                yield LabelEntry(row.number, row.place, *_decode([document]))
            except InvalidRequest as error:
                why = error.message.replace("feedback[0].", "").replace("feedback[0]", "the row")
                yield BadRow(row.place, why, row.content)


def _decode(documents: Iterable[dict[str, Any]]) -> list[Feedback]:
    try:
        body = orjson.dumps({"feedback": list(documents)}, default=as_text)
    except TypeError as error:  # a number beyond 64 bits, a text that is not Unicode
        raise InvalidRequest(str(error)) from None
    return protocols.feedback.decode(_JSON, body)


def _document(
    values: dict[str, Any] | _NotALabel, columns: LabelColumns, kind: FileFormat
) -> dict[str, Any] | _NotALabel:
    """Return the row as an entry of `POST /feedback`."""
    if isinstance(values, _NotALabel):
        return values
    if kind == "jsonl" and not columns.key and ("key" in values or columns.label not in values):
        return values
    is_empty = {name for name, value in values.items() if value is None or (kind == "csv" and value == "")}
    if columns.label not in values:
        return _NotALabel(f"it has no {columns.label!r}")
    if columns.label in is_empty and kind != "jsonl":
        return _NotALabel(f"its {columns.label!r} is empty")
    document: dict[str, Any] = {"label": values[columns.label]}
    if columns.key:
        if missing := [name for name in columns.key if name not in values or (kind == "csv" and name in is_empty)]:
            return _NotALabel(f"it has no {missing[0]!r}, which is of the key")
        key = {name: values[name] for name in columns.key}
        for name in columns.numbers & key.keys():
            if isinstance(key[name], str) and _FRACTION.fullmatch(key[name]):
                key[name] = float(key[name])
        return {**document, "key": key}
    if columns.prediction_id not in values or columns.prediction_id in is_empty:
        return _NotALabel(f"it has no {columns.prediction_id!r}")
    document["prediction_id"] = values[columns.prediction_id]
    given = values.get(columns.row)
    if columns.row in values and columns.row not in is_empty:
        document["row"] = int(given) if isinstance(given, str) and _NUMBER.fullmatch(given) else given
    return document


def _csv_rows(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row]:
    header: list[str] = []
    for record in csv_records(file):
        fields = record.fields
        if record.error:
            yield _row(record.line, _NotALabel(f"it is no CSV: {record.error}"), None)
        elif not header:
            header = fields
            _require_columns(header, name, columns)
        else:
            shown = ",".join(fields).encode(errors="replace").decode()
            if len(fields) != len(header):
                yield _row(record.line, _NotALabel(f"it has {len(fields)} fields, the header {len(header)}"), shown)
            elif any("\udc80" <= one <= "\udcff" for field in fields for one in field):
                yield _row(record.line, _NotALabel("it is no UTF-8"), shown)
            else:
                yield _row(record.line, dict(zip(header, fields, strict=True)), shown)
    if not header:
        raise InvalidConfig(f"{name} is empty; a header and rows are expected")


def _json_rows(file: IO[bytes]) -> Iterator[_Row]:
    for number, line, _ in json_lines(file):
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            values = _NotALabel(f"it is no JSON: {error}")
        else:
            values = values if isinstance(values, dict) else _NotALabel("it is no JSON object")
        yield _row(number, values, line.decode(errors="replace").rstrip("\r\n"))


def _row(line: int, values: dict[str, Any] | _NotALabel, shown: str | None) -> _Row:
    return _Row(line, f"line {line}", values, shown)


def _parquet_rows(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row]:
    try:
        parquet = open_parquet(file)
        _require_columns(parquet.schema_arrow.names, name, columns)
        wanted = {columns.label, columns.prediction_id, columns.row, *columns.key}
        present = [column for column in parquet.schema_arrow.names if column in wanted]
        number = 0
        for batch in parquet.iter_batches(_ROWS, columns=present):
            for values in batch.to_pylist():
                plain = {column: _plain(value) for column, value in values.items()}
                yield _Row(number, f"row {number} (from 0)", plain, plain)
                number += 1
    except (pa.ArrowException, OSError, OverflowError) as error:  # a time that is beyond Python's
        shown = " ".join(str(error).split())
        raise InvalidConfig(f"{name} cannot be read as Parquet: {shown[:200]}") from None


def _plain(value: Any) -> Any:
    """Return a value that JSON has: dates and decimals become texts, bytes the text that they are."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, float) and not math.isfinite(value):
        return as_text(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else as_text(value)


def _require_columns(header: Sequence[str], name: str, columns: LabelColumns) -> None:
    needed = [*columns.key, columns.label] if columns.key else [columns.prediction_id, columns.label]
    for column in needed:
        if column not in header:
            option = "--label-column" if column == columns.label else "--key" if columns.key else "--id-column or --key"
            raise InvalidConfig(f"{name} has no column {column!r}, it has {', '.join(header[:20])}; see {option}")
