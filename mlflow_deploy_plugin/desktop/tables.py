"""The rows of a CSV or Excel file, their predictions, and files with both."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import openpyxl
import orjson
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.protocols import CSV, JSON
from mlflow_deploy_plugin.runtime import OnnxModel
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import as_text
from mlflow_deploy_plugin.statedir.files import write_atomically
from mlflow_deploy_plugin.tabular import csv_records

EXCEL = ".xlsx"
_MOST_BYTES, _MOST_CELLS, _MOST_COLUMNS = 200_000_000, 5_000_000, 20
_ROW = re.compile(r"\brow (\d+)")
_FORMULA, _NUMBER = re.compile(r"[=+\-@\t\r]"), re.compile(r"[+-]?[\d.]+(e[+-]?\d+)?", re.IGNORECASE)
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS

Columns = dict[str, list[object]]
"""The values of the rows by column; all columns have the same length."""


@dataclass(frozen=True)
class Table:
    """The texts of a file by row; `lines` are the numbers of the rows' lines in the file."""

    names: list[str]
    rows: list[list[str]]
    lines: list[int]


def read_table(path: Path) -> Table:
    """Return the rows of a CSV file, or of the first sheet of an Excel file. The first line has the columns' names.

    Raises InvalidRequest with the file's name and the line if the file cannot be read or is too large.
    """
    read, lines, rows = _excel_rows if path.suffix.lower() == EXCEL else _csv_rows, list[int](), list[list[str]]()
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidRequest(f"it has more than {_MOST_BYTES / 1e6:.0f} MB; split the file")
        with path.open("rb") as file:
            for line, texts in read(file):
                lines.append(line)
                rows.append(texts)
                if len(rows) * len(rows[0]) > _MOST_CELLS:
                    raise InvalidRequest(f"it has more than {_MOST_CELLS:,} cells; split the file")
    except (OSError, InvalidRequest) as error:
        reason = error.message if isinstance(error, InvalidRequest) else error.strerror
        raise InvalidRequest(f"{path.name} cannot be read: {reason}") from None
    if len(rows) < 2:
        raise InvalidRequest(f"{path.name} has no rows below the names of the columns")
    return Table(rows[0], rows[1:], lines[1:])


def _csv_rows(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    width = 0
    for record in csv_records(file):
        width = width or len(record.fields)
        if fault := record.fault(width):
            raise InvalidRequest(f"line {record.line}: {fault}")
        if width == 1 and ";" in record.fields[0]:
            raise InvalidRequest("semicolons separate its columns; save it with commas or as .xlsx")
        yield record.line, record.fields


def _excel_rows(file: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
    width = 0
    try:
        if sum(entry.file_size for entry in zipfile.ZipFile(file).infolist()) > 10 * _MOST_BYTES:
            raise InvalidRequest("the unpacked workbook is too large")
        sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # Some programs write a wrong size of the sheet.
        for line, values in enumerate(sheet.iter_rows(values_only=True), 1):
            texts = [as_text(value) or "" for value in values]
            width = width or len(texts) - next((i for i, text in enumerate(reversed(texts)) if text), len(texts))
            if any(texts):
                yield line, (texts + [""] * width)[:width]
    except InvalidRequest:
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl raises errors of many classes for a broken file
        raise InvalidRequest(f"it is not an Excel workbook (.xlsx): {one_line(error, 200)}") from None


def predict_file(model: OnnxModel, path: Path) -> tuple[Columns, Columns]:
    """Do the same as `predict` for the rows of a CSV or Excel file, or for a request in a JSON file."""
    if path.suffix.lower() != ".json":
        return predict_table(model, read_table(path))
    try:
        return predict(model, JSON, path.read_bytes())
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}") from None


def predict_table(model: OnnxModel, table: Table) -> tuple[Columns, Columns]:
    """Do the same as `predict` for texts, which the server's decoder reads as a CSV request. Keep all their columns.

    Errors contain the number of the line in the file instead of the number of the row.
    """
    texts: Columns = {name: [row[index] for row in table.rows] for index, name in enumerate(table.names)}
    try:
        inputs, predictions = predict(model, CSV, _csv_text(table.names, table.rows).encode())
    except OnnxserveError as error:
        labels = dict(enumerate(table.lines))
        message = _ROW.sub(lambda row: f"line {labels[int(row[1])]}" if labels else row[0], error.message)
        raise type(error)(message) from None
    return texts | inputs, predictions


def predict(model: OnnxModel, content_type: str, body: bytes) -> tuple[Columns, Columns]:
    """Return the columns of the signature and of the predictions for a body of `/invocations`.

    Raises the errors of `protocols.mlflow.decode` and `OnnxModel.run`.
    """
    feeds = protocols.mlflow.decode(content_type, body, model.schema)
    outputs, count, artifact = model.run(feeds), model.schema.count_rows(feeds), model.artifact
    inputs, predictions = Columns(), Columns()
    for name, array in model.schema.to_columns(feeds).items() if artifact.columns else ():
        inputs |= _columns(name, array, count)
    for output in sorted(artifact.outputs, key=lambda output: output.name not in artifact.prediction):
        name = "prediction" if artifact.prediction == (output.name,) else output.name
        labels = [f"probability of {label}" for label in artifact.classes] if output.role == "probabilities" else []
        predictions |= _columns(name, outputs[output.name], count, labels)
    return inputs, predictions


def _columns(name: str, array: Array, count: int, labels: Sequence[str] = ()) -> Columns:
    """Return an array as columns. An array that has more than one value per row, and many values, is shown as JSON."""
    # The values are those of the server's JSON: a float32 has as many digits as it needs, and NaN is null.
    content = array.tolist() if array.dtype == object or not array.ndim else np.ascontiguousarray(array)
    values = orjson.loads(orjson.dumps(content, option=_JSON))
    if array.shape == (count,) and not isinstance(values[0], dict):
        return {name: values}
    if array.shape == (count, 1):
        return {name: [value for (value,) in values]}
    if array.ndim == 2 and len(array) == count and array.shape[1] in range(_MOST_COLUMNS) or len(labels) > 1:
        names = labels or [f"{name} {index}" for index in range(array.shape[1])]
        return dict(zip(names, map(list, zip(*values, strict=True)), strict=True))
    return {
        name: [json.dumps(value) for value in values] if array.shape[:1] == (count,) else [json.dumps(values)] * count
    }


def save_table(path: Path, columns: Columns) -> None:
    """Write columns to a CSV or Excel file (.xlsx), which is replaced as a whole. Raises InvalidRequest.

    A text that a spreadsheet would run as a formula is written as a text.
    """
    rows = zip(*columns.values(), strict=True)
    if path.suffix.lower() == EXCEL:
        content = _workbook([[*columns], *rows])
    else:
        content = _csv_text(
            [*columns], ([_without_formula(as_text(value) or "") for value in row] for row in rows)
        ).encode()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror}") from None


def _csv_text(names: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([names, *rows])
    return text.getvalue()


def _without_formula(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def _workbook(rows: Iterable[Sequence[object]]) -> bytes:
    workbook, content = openpyxl.Workbook(write_only=True), io.BytesIO()
    sheet = workbook.create_sheet("predictions")
    for row in rows:
        cells = [
            WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value) if isinstance(value, str) else value)
            for value in row
        ]
        for cell in cells:
            if isinstance(cell.value, str):
                cell.data_type = "s"  # Otherwise a text that begins with = is a formula.
        sheet.append(cells)
    workbook.save(content)
    return content.getvalue()
