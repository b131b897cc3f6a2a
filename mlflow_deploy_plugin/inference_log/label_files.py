"""Files of labels: CSV, JSON Lines or Parquet. A bad row does not affect the others. A row names its prediction by
`prediction_id` and, if the request had several rows, `row`; or by key columns, such as the flight and the day."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO

import orjson
import pyarrow as pa

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.runtime.log_columns import as_text
from mlflow_deploy_plugin.spool import Feedback
from mlflow_deploy_plugin.tabular import FileFormat, csv_records, json_lines, open_parquet

PREDICTION_ID, ROW, LABEL = "prediction_id", "row", "label"
_JSON = "application/json"
_ROWS = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17})(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class LabelColumns:
    """The columns of a file that hold labels and name their rows: the `key` columns; if empty, `prediction_id` and
    `row`. Columns in `numbers` hold numbers in the log, so that a CSV file's 7.0 is their 7."""

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
    content: object


@dataclass(frozen=True)
class _Row:
    """A row of the file: its values by column, then the entry of `POST /feedback`; `content` is shown if it is bad."""

    number: int
    place: str
    values: dict[str, object]
    content: object


def read_label_file(
    file: IO[bytes], name: str, kind: FileFormat, columns: LabelColumns
) -> Iterator[LabelEntry | BadRow]:
    """Yield the labels of an open file, in order; raise InvalidConfig for a missing column or another format."""
    if kind == "csv":
        rows = _csv_rows(file, name, columns)
    else:
        rows = _json_rows(file) if kind == "jsonl" else _parquet_rows(file, name, columns)
    while some := list(islice(rows, _ROWS)):
        yield from _check([row if isinstance(row, BadRow) else _entry(row, columns, kind) for row in some])


def _check(rows: Sequence[_Row | BadRow]) -> Iterator[LabelEntry | BadRow]:
    """Apply the rules of `POST /feedback`: to all at once, and one by one if a row breaks a rule."""
    good = [row.values for row in rows if isinstance(row, _Row)]
    try:
        decoded = iter(_decode(good) if good else ())
    except InvalidRequest:
        decoded = None
    for row in rows:
        if isinstance(row, BadRow):
            yield row
        elif decoded is not None:
            yield LabelEntry(row.number, row.place, next(decoded))
        else:
            try:
                yield LabelEntry(row.number, row.place, *_decode([row.values]))
            except InvalidRequest as error:
                why = error.message.replace("feedback[0].", "").replace("feedback[0]", "the row")
                yield BadRow(row.place, why, row.content)


def _decode(documents: Iterable[dict[str, object]]) -> list[Feedback]:
    try:
        body = orjson.dumps({"feedback": list(documents)}, default=as_text)
    except TypeError as error:  # a number beyond 64 bits, a text that is not Unicode
        raise InvalidRequest(str(error)) from None
    return protocols.feedback.decode(_JSON, body)


def _entry(row: _Row, columns: LabelColumns, kind: FileFormat) -> _Row | BadRow:
    values = row.values
    if kind == "jsonl" and not columns.key and ("key" in values or columns.label not in values):
        return row  # it is such an entry already
    if kind == "csv":  # CSV has no other form of a missing value.
        values = {name: None if value == "" else value for name, value in values.items()}
    label = values.get(columns.label)
    if columns.label not in values:
        return BadRow(row.place, f"it has no {columns.label!r}", row.content)
    if label is None and kind != "jsonl":
        return BadRow(row.place, f"its {columns.label!r} is empty", row.content)
    if columns.key:
        if missing := [name for name in columns.key if name not in values]:
            return BadRow(row.place, f"it has no {missing[0]!r}, which is of the key", row.content)
        key = {name: values[name] for name in columns.key}
        for name in columns.numbers & key.keys():
            if isinstance(value := key[name], str) and _FRACTION.fullmatch(value):
                key[name] = float(value)
        return replace(row, values={"label": label, "key": key})
    if values.get(columns.prediction_id) is None:
        return BadRow(row.place, f"it has no {columns.prediction_id!r}", row.content)
    entry = {"label": label, "prediction_id": values[columns.prediction_id]}
    number = values.get(columns.row)
    if number is not None:
        entry["row"] = int(number) if isinstance(number, str) and _NUMBER.fullmatch(number) else number
    return replace(row, values=entry)


def _csv_rows(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row | BadRow]:
    header: list[str] = []
    for record in csv_records(file):
        place, shown = f"line {record.line}", ",".join(record.fields).encode(errors="replace").decode()
        if not header and not record.error:
            header = record.fields
            _require_columns(header, name, columns)
        elif fault := record.fault(len(header)):
            yield BadRow(place, fault, None if record.error else shown)
        else:
            yield _Row(record.line, place, dict(zip(header, record.fields, strict=True)), shown)
    if not header:
        raise InvalidConfig(f"{name} is empty; a header and rows are expected")


def _json_rows(file: IO[bytes]) -> Iterator[_Row | BadRow]:
    for number, line, _ in json_lines(file):
        place, shown = f"line {number}", line.decode(errors="replace").rstrip("\r\n")
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield BadRow(place, f"it is no JSON: {error}", shown)
            continue
        yield (
            _Row(number, place, values, shown)
            if isinstance(values, dict)
            else BadRow(place, "it is no JSON object", shown)
        )


def _parquet_rows(file: IO[bytes], name: str, columns: LabelColumns) -> Iterator[_Row | BadRow]:
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
        shown = one_line(error)
        raise InvalidConfig(f"{name} cannot be read as Parquet: {shown[:200]}") from None


def _plain(value: object) -> object:
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
        if header.count(column) > 1:
            raise InvalidConfig(f"{name} has two columns {column!r}")
