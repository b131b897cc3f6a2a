"""The rows of a CSV or Excel file, their predictions, and files with both."""

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import openpyxl
import orjson
from openpyxl.cell import WriteOnlyCell
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE as _ILLEGAL

from mlflow_deploy_plugin import protocols
from mlflow_deploy_plugin.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.messages import one_line
from mlflow_deploy_plugin.protocols import CSV
from mlflow_deploy_plugin.runtime import OnnxModel
from mlflow_deploy_plugin.runtime.feeds import Array
from mlflow_deploy_plugin.runtime.log_columns import as_text
from mlflow_deploy_plugin.statedir.files import write_atomically
from mlflow_deploy_plugin.tabular import csv_records

Columns = dict[str, list[object]]
"""The values of the rows by column; all columns have the same length."""

_MOST_BYTES = 200_000_000
_ROW = re.compile(r"(^|, )row (\d+)")
_FORMULA = re.compile(r"^(?=[=+\-@\t\r])(?![+-]?[\d.]+(e[+-]?\d+)?$)", re.IGNORECASE)
"""The start of a text that a spreadsheet runs as a formula. A number such as -5 is not a formula."""


def predict_file(model: OnnxModel, path: Path) -> tuple[Columns, Columns]:
    """Do the same as `predict_csv` for a CSV or Excel file. Errors count rows as a spreadsheet does.

    Raises InvalidRequest if the file cannot be read or is too large.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidRequest(f"{path.name} has more than {_MOST_BYTES / 1e6:.0f} MB; split the file")
        body = _excel_to_csv(path) if path.suffix.lower() == ".xlsx" else path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be read: {error.strerror}") from None
    try:
        return predict_csv(model, body)
    except OnnxserveError as error:
        if (row := _ROW.search(error.message)) is None:
            raise
        records = csv.reader(io.StringIO(body.decode(), newline=""))
        numbers = (number for number, fields in enumerate(records, 1) if len(fields) > 1 or "".join(fields).strip())
        number = next(islice(numbers, int(row[2]) + 1, None))
        raise type(error)(_ROW.sub(rf"\g<1>row {number}", error.message, 1)) from None


def _excel_to_csv(path: Path) -> bytes:
    """Return the first sheet as CSV with one line per row. Raises InvalidRequest if the file is not a workbook."""
    try:
        if sum(entry.file_size for entry in zipfile.ZipFile(path).infolist()) > 5 * _MOST_BYTES:
            raise InvalidRequest("its unpacked sheets are too large; split the file")
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # Some programs write a wrong size of the sheet.
        rows = [[as_text(value) or "" for value in row] for row in sheet.iter_rows(values_only=True)]
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - openpyxl raises errors of many classes for a broken file
        raise InvalidRequest(f"{path.name} cannot be read as an Excel workbook: {one_line(error, 200)}") from None
    width = max((index for index, name in enumerate(rows[0] if rows else (), 1) if name), default=0)
    return csv_text((row + [""] * width)[:width] if any(row) else [] for row in rows).encode()


def predict_csv(model: OnnxModel, body: bytes) -> tuple[Columns, Columns]:
    """Return all columns of a CSV text, and the predictions for its rows.

    Raises the errors of `protocols.mlflow.decode` and `OnnxModel.run`.
    """
    artifact, schema = model.artifact, model.schema
    feeds = protocols.mlflow.decode(CSV, body, schema)
    outputs = model.run(feeds)
    header, *records = (record.fields for record in csv_records(io.BytesIO(body)))
    inputs: Columns = dict(zip(header, map(list, zip(*records, strict=True)), strict=True))
    for name, array in schema.to_columns(feeds).items() if schema.columns else ():
        inputs |= _columns(name, array, len(records))
    predictions = Columns()
    for output in sorted(artifact.outputs, key=lambda output: output.name not in artifact.prediction):
        name = "prediction" if artifact.prediction == (output.name,) else output.name
        labels = [f"probability of {label}" for label in artifact.classes] if output.role == "probabilities" else []
        predictions |= _columns(name, outputs[output.name], len(records), labels)
    return inputs, predictions


def _columns(name: str, array: Array, count: int, labels: Sequence[str] = ()) -> Columns:
    """Return an array as columns of the server's JSON values: a float32 has few digits, and NaN is null."""
    content = array.tolist() if array.dtype == object or not array.ndim else np.ascontiguousarray(array)
    values = orjson.loads(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))
    if array.ndim != 2 or len(array) != count:
        return {name: values if array.shape[:1] == (count,) else [values] * count}
    width = array.shape[1]
    names = labels if len(labels) == width else [f"{name} {index}" for index in range(width)] if width > 1 else [name]
    return dict(zip(names, map(list, zip(*values, strict=True)), strict=True))


def save_columns(path: Path, columns: Columns) -> None:
    """Write columns to a CSV or Excel file (.xlsx). A text that a spreadsheet would run as a formula remains a text.

    Raises InvalidRequest if the file cannot be written. An existing file is replaced only by a complete file.
    """
    rows = [[*columns], *zip(*columns.values(), strict=True)]
    if path.suffix.lower() == ".xlsx":
        content = _workbook(rows)
    else:
        content = csv_text([_FORMULA.sub("'", as_text(value) or "") for value in row] for row in rows).encode()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror}") from None


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _workbook(rows: Iterable[Sequence[object]]) -> bytes:
    workbook, content = openpyxl.Workbook(write_only=True), io.BytesIO()
    sheet = workbook.create_sheet("predictions")
    for row in rows:
        cells = [
            WriteOnlyCell(sheet, value if isinstance(value, int | float) else _ILLEGAL.sub("", as_text(value) or ""))
            for value in row
        ]
        for cell in cells:
            if cell.data_type == "f":  # openpyxl takes a text that begins with = for a formula.
                cell.data_type = "s"
        sheet.append(cells)
    workbook.save(content)
    return content.getvalue()
