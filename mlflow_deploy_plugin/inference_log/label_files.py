"""Files of labels: CSV, JSON Lines or Parquet, row by row, of which a bad one does not spoil the others.

A row names its prediction by the columns `prediction_id` and, where the request had several rows, `row`; or by key
columns, as the flight and the day. JSON Lines may hold what `POST /feedback` takes, as it is.
"""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, Literal

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.runtime import as_text
from mlflow_deploy_plugin.server.capture.feedback import Feedback
from mlflow_deploy_plugin.server.protocols import feedback as protocol

LabelFileKind = Literal["csv", "jsonl", "parquet"]
PREDICTION_ID, ROW, LABEL = "prediction_id", "row", "label"
_JSON = "application/json"
_ROWS = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17})(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class LabelColumns:
    """Where a label and what it is of stand.

    Attributes:
        key: the columns that name the row; empty: `prediction_id` and `row` do.
        numbers: of them those that hold numbers in the log: a CSV file's 7.0 is their 7.
    """

    key: tuple[str, ...] = ()
    label: str = LABEL
    prediction_id: str = PREDICTION_ID
    row: str = ROW
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelEntry:
    """A label, and where in the file it stands: line 7, row 12 (from 0)."""

    number: int
    place: str
    feedback: Feedback


@dataclass(frozen=True)
class BadRow:
    """A row that is no label, why, and what it holds."""

    place: str
    why: str
    content: Any


class _NoLabel(Exception):
    """A row is no label; its text says why."""


_Row = tuple[int, str, dict[str, Any] | _NoLabel, Any]
"""Number, place, the values by column, and what is shown of it where it is bad."""


def read_label_file(
    file: IO[bytes], name: str, kind: LabelFileKind, columns: LabelColumns
) -> Iterator[LabelEntry | BadRow]:
    """The labels of an open file, in order.

    Raises:
        InvalidConfig: it has no such column, or is not of this kind at all.
    """
    rows = {"csv": _csv, "jsonl": _jsonl, "parquet": _parquet}[kind](file, name, columns)
    while some := list(islice(rows, _ROWS)):
        yield from _checked([(row, _document(row, columns, kind)) for row in some])


def _checked(documents: Sequence[tuple[_Row, dict[str, Any] | _NoLabel]]) -> Iterator[LabelEntry | BadRow]:
    """By the rules of `POST /feedback`: all at once, and one by one where one of them breaks a rule."""
    good = [document for _, document in documents if isinstance(document, dict)]
    try:
        decoded = iter(_decode(good) if good else ())
    except InvalidRequest:
        decoded = None
    for (number, place, _, content), document in documents:
        if isinstance(document, _NoLabel):
            yield BadRow(place, str(document), content)
        elif decoded is not None:
            yield LabelEntry(number, place, next(decoded))
        else:
            try:
                yield LabelEntry(number, place, *_decode([document]))
            except InvalidRequest as error:
                yield BadRow(
                    place, error.message.replace("feedback[0].", "").replace("feedback[0]", "the row"), content
                )


def _decode(documents: Iterable[dict[str, Any]]) -> list[Feedback]:
    try:
        body = orjson.dumps({"feedback": list(documents)}, default=as_text)
    except TypeError as error:  # a number beyond 64 bits, a text that is no Unicode
        raise InvalidRequest(str(error)) from None
    return protocol.decode(_JSON, body)


def _document(row: _Row, columns: LabelColumns, kind: LabelFileKind) -> dict[str, Any] | _NoLabel:
    """The row as `POST /feedback` takes it."""
    values = row[2]
    if isinstance(values, _NoLabel):
        return values
    if kind == "jsonl" and not columns.key and ("key" in values or columns.label not in values):
        return values
    is_empty = {name for name, value in values.items() if value is None or (kind == "csv" and value == "")}
    if columns.label not in values:
        return _NoLabel(f"it has no {columns.label!r}")
    if columns.label in is_empty and kind != "jsonl":
        return _NoLabel(f"its {columns.label!r} is empty")
    document: dict[str, Any] = {"label": values[columns.label]}
    if columns.key:
        if missing := [name for name in columns.key if name not in values or (kind == "csv" and name in is_empty)]:
            return _NoLabel(f"it has no {missing[0]!r}, which is of the key")
        return {**document, "key": {name: _as_logged(values[name], name in columns.numbers) for name in columns.key}}
    if columns.prediction_id not in values or columns.prediction_id in is_empty:
        return _NoLabel(f"it has no {columns.prediction_id!r}")
    document["prediction_id"] = values[columns.prediction_id]
    given = values.get(columns.row)
    if columns.row in values and columns.row not in is_empty:
        document["row"] = int(given) if isinstance(given, str) and _NUMBER.fullmatch(given) else given
    return document


def _as_logged(value: Any, is_number: bool) -> Any:
    if is_number and isinstance(value, str) and _FRACTION.fullmatch(value):
        return float(value)
    return value


def _csv(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text)
    header: list[str] = []
    while True:
        number = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield number, f"line {number}", _NoLabel(f"it is no CSV: {error}"), None
            continue
        if fields is None:
            break
        if not fields or (len(fields) == 1 and not fields[0].strip()):
            continue
        if not header:
            header = fields
            _require(header, name, columns)
            continue
        yield number, f"line {number}", _csv_values(header, fields), ",".join(fields).encode(errors="replace").decode()
    if not header:
        raise InvalidConfig(f"{name} is empty; a header and rows are expected")
    text.detach()


def _csv_values(header: list[str], fields: list[str]) -> dict[str, Any] | _NoLabel:
    if len(fields) != len(header):
        return _NoLabel(f"it has {len(fields)} fields, the header {len(header)}")
    if any("\udc80" <= one <= "\udcff" for field in fields for one in field):
        return _NoLabel("it is no UTF-8")
    return dict(zip(header, fields, strict=True))


def _jsonl(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        shown = line.decode(errors="replace").rstrip("\r\n")
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, f"line {number}", _NoLabel(f"it is no JSON: {error}"), shown
            continue
        is_object = isinstance(values, dict)
        yield number, f"line {number}", values if is_object else _NoLabel("it is no JSON object"), shown


def _parquet(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row]:
    try:
        parquet = pq.ParquetFile(file if file.seekable() else io.BytesIO(file.read()))
        _require(parquet.schema_arrow.names, name, columns)
        wanted = {columns.label, columns.prediction_id, columns.row, *columns.key}
        present = [column for column in parquet.schema_arrow.names if column in wanted]
        number = 0
        for batch in parquet.iter_batches(_ROWS, columns=present):
            for values in batch.to_pylist():
                plain = {column: _plain(value) for column, value in values.items()}
                yield number, f"row {number} (from 0)", plain, plain
                number += 1
    except (pa.ArrowException, OSError, OverflowError) as error:  # a time that is beyond Python's
        shown = " ".join(str(error).split())
        raise InvalidConfig(f"{name} cannot be read as Parquet: {shown[:200]}") from None


def _plain(value: Any) -> Any:
    """As JSON has it: dates and decimals as texts, bytes as the text that they are."""
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, float) and not math.isfinite(value):
        return as_text(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else as_text(value)


def _require(header: Sequence[str], name: str, columns: LabelColumns) -> None:
    needed = [*columns.key, columns.label] if columns.key else [columns.prediction_id, columns.label]
    for column in needed:
        if column not in header:
            option = "--label-column" if column == columns.label else "--key" if columns.key else "--id-column or --key"
            raise InvalidConfig(f"{name} has no column {column!r}, it has {', '.join(header[:20])}; see {option}")
