"""Label files: CSV, JSON Lines or Parquet. A bad row does not affect other rows. A row
identifies its prediction by `prediction_id` and, for a request with several rows,
`row`; or by key columns, such as the flight and the day.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import orjson
import pyarrow as pa

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.tabular.csv_file import csv_records
from mlflow_deploy_plugin.core.tabular.row_files import FileFormat, json_lines, open_parquet
from mlflow_deploy_plugin.serve.protocols import feedback as feedback_protocol
from mlflow_deploy_plugin.serve.runtime.log_columns import as_text
from mlflow_deploy_plugin.serve.spool.codec import Feedback

PREDICTION_ID = "prediction_id"
ROW = "row"
LABEL = "label"
_ROWS = 1000
_NUMBER = re.compile(r"[0-9]{1,18}")
_FRACTION = re.compile(r"[+-]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17})(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True)
class LabelColumns:
    """The column names of a label file. Rows are identified by the `key` columns, or by
    `prediction_id` and `row` if `key` is empty. Columns in `numbers` are numeric in the
    log, so that 7.0 in a CSV file matches 7 in the log.
    """

    key: tuple[str, ...] = ()
    label: str = LABEL
    prediction_id: str = PREDICTION_ID
    row: str = ROW
    numbers: frozenset[str] = frozenset()


@dataclass(frozen=True)
class LabelEntry:
    """A label, and its position in the file: line 7, or row 12 (from 0)."""

    number: int
    place: str
    feedback: Feedback


@dataclass(frozen=True)
class BadRow:
    """A row that is not a valid label: its position, the reason, and its content."""

    place: str
    why: str
    content: object


@dataclass(frozen=True)
class _Row:
    """A row of the file. `values` has its columns. Messages quote `content`."""

    number: int
    place: str
    values: dict[str, object]
    content: object


def read_label_file(
    file: IO[bytes],
    name: str,
    kind: FileFormat,
    columns: LabelColumns,
) -> Iterator[LabelEntry | BadRow]:
    """Yield the labels of an open file in order; raise InvalidConfig for a missing
    column or a wrong format.
    """
    if kind == "csv":
        rows = _csv_rows(file, name, columns)
    elif kind == "jsonl":
        rows = _json_rows(file)
    else:
        rows = _parquet_rows(file, name, columns)
    for row in rows:
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            entry = _entry(row.values, columns, kind)
            body = orjson.dumps({"feedback": [entry]}, default=as_text)
            (label,) = feedback_protocol.decode("application/json", body)
            yield LabelEntry(row.number, row.place, label)
        except TypeError as error:  # JSON has no numbers beyond 64 bits and no invalid Unicode.
            yield BadRow(row.place, str(error), row.content)
        except InvalidRequest as error:
            why = error.message.replace("feedback[0].", "").replace("feedback[0]", "the row")
            yield BadRow(row.place, why, row.content)


def _entry(
    values: dict[str, object],
    columns: LabelColumns,
    kind: FileFormat,
) -> dict[str, object]:
    """Return a row as an entry of `POST /feedback`. Raises InvalidRequest if the row
    has no label or does not identify its prediction.
    """
    if kind == "jsonl" and not columns.key and ("key" in values or columns.label not in values):
        return values  # The row already is an entry of `POST /feedback`.
    if kind == "csv":  # In CSV, only an empty field is a missing value.
        values = values | dict.fromkeys([name for name in values if values[name] == ""])
    label = values.get(columns.label)
    if columns.label not in values:
        raise InvalidRequest(f"it has no {columns.label!r}")
    if label is None and kind != "jsonl":
        raise InvalidRequest(f"its {columns.label!r} is empty")
    if columns.key:
        missing = [name for name in columns.key if name not in values]
        if missing:
            raise InvalidRequest(f"it has no key column {missing[0]!r}")
        key = {name: values[name] for name in columns.key}
        # Texts of numeric columns become numbers if they have a fraction.
        for name in columns.numbers & key.keys():
            value = key[name]
            if isinstance(value, str) and _FRACTION.fullmatch(value):
                key[name] = float(value)
        return {"label": label, "key": key}
    if values.get(columns.prediction_id) is None:
        raise InvalidRequest(f"it has no {columns.prediction_id!r}")
    prediction = {"label": label, "prediction_id": values[columns.prediction_id]}
    number = values.get(columns.row)
    if isinstance(number, str) and _NUMBER.fullmatch(number):
        number = int(number)
    if number is not None:
        prediction["row"] = number
    return prediction


def _csv_rows(
    file: IO[bytes],
    name: str,
    columns: LabelColumns,
) -> Iterator[_Row | BadRow]:
    """Yield the rows of a CSV file. The first readable line is the header. Raises
    InvalidConfig if there is no header or a column is missing or repeated.
    """
    header: list[str] = []
    for record in csv_records(file):
        place = f"line {record.line}"
        text = ",".join(record.fields).encode(errors="replace").decode()
        if not header and not record.error:
            header = record.fields
            _require_columns(header, name, columns)
        elif fault := record.fault(len(header)):
            content = None if record.error else text
            yield BadRow(place, fault, content)
        else:
            values: dict[str, object] = dict(zip(header, record.fields, strict=True))
            yield _Row(record.line, place, values, text)
    if not header:
        raise InvalidConfig(f"{name} is empty; a header and rows are expected")


def _json_rows(file: IO[bytes]) -> Iterator[_Row | BadRow]:
    for number, line, _ in json_lines(file):
        place = f"line {number}"
        text = line.decode(errors="replace").rstrip("\r\n")
        try:
            values = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield BadRow(place, f"it is not JSON: {error}", text)
            continue
        if isinstance(values, dict):
            yield _Row(number, place, values, text)
        else:
            yield BadRow(place, "it is not a JSON object", text)


def _parquet_rows(
    file: IO[bytes],
    name: str,
    columns: LabelColumns,
) -> Iterator[_Row | BadRow]:
    """Yield the rows of a Parquet file, with the needed columns and JSON-compatible
    values. Raises InvalidConfig if the file is not readable, or a column is missing or
    repeated.
    """
    try:
        parquet = open_parquet(file)
        _require_columns(parquet.schema_arrow.names, name, columns)
        names = {columns.label, columns.prediction_id, columns.row, *columns.key}
        present = [column for column in parquet.schema_arrow.names if column in names]
        number = 0
        for batch in parquet.iter_batches(_ROWS, columns=present):
            for values in batch.to_pylist():
                plain = {column: _plain(value) for column, value in values.items()}
                yield _Row(number, f"row {number} (from 0)", plain, plain)
                number += 1
    # OverflowError: a time outside of Python's range
    except (pa.ArrowException, OSError, OverflowError) as error:
        raise InvalidConfig(f"{name} cannot be read as Parquet: {one_line(error, 200)}") from None


def _plain(value: object) -> object:
    """Return a JSON-compatible value: dates and decimals become text, and bytes are
    decoded.
    """
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, float) and not math.isfinite(value):
        return as_text(value)
    if isinstance(value, str | int | float | bool | list | dict | None):
        return value
    return as_text(value)


def _require_columns(header: Sequence[str], name: str, columns: LabelColumns) -> None:
    """Raise InvalidConfig if the label column, or a column that identifies the
    prediction, is missing or repeated.
    """
    if columns.key:
        options = dict.fromkeys(columns.key, "--key")
    else:
        options = {columns.prediction_id: "--id-column or --key"}
    options[columns.label] = "--label-column"
    for column, option in options.items():
        if column not in header:
            raise InvalidConfig(
                f"{name} has no column {column!r}; it has {', '.join(header[:20])}; see {option}",
            )
        if header.count(column) > 1:
            raise InvalidConfig(f"{name} has two columns {column!r}")
