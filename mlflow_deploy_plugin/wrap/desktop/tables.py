"""The rows of a CSV or Excel file, their predictions, and files with both."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import openpyxl
import orjson
from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE as _ILLEGAL

from mlflow_deploy_plugin.core.errors import InvalidRequest, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.statedir.files import write_atomically
from mlflow_deploy_plugin.core.tabular.csv_file import csv_records
from mlflow_deploy_plugin.serve.protocols import mlflow as mlflow_protocol
from mlflow_deploy_plugin.serve.protocols.content import CSV
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.runtime.log_columns import as_text
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel

Columns = dict[str, list[object]]
"""The values of the rows by column; all columns have the same length."""

_MOST_BYTES = 200_000_000
_ROW = re.compile(r"((?<=^row )|(?<=, row ))\d+")
_FORMULA = re.compile(r"^(?=[=+\-@\t\r])(?![+-]?[\d.]+(e[+-]?\d+)?$)", re.IGNORECASE)
"""The start of a text that a spreadsheet runs as a formula. A number such as -5 is not
a formula.
"""


def predict_file(model: OnnxModel, path: Path) -> tuple[Columns, Columns]:
    """Return all columns of a CSV file in UTF-8, or of the first sheet of an Excel file
    (.xlsx), and the predictions for its rows.

    Raises InvalidRequest if the file cannot be read, is too large or does not fit the
    model. A message counts the rows from the header, which is row 1, without empty
    rows.
    """
    try:
        body = _read_csv(path)
    except Exception as error:  # noqa: BLE001 - openpyxl raises errors of many classes for a broken file
        reason = one_line(getattr(error, "strerror", None) or error, 200)
        raise InvalidRequest(f"{path.name} cannot be read: {reason}") from None
    try:
        return predict_csv(model, body)
    except OnnxserveError as error:
        message = _ROW.sub(
            lambda row: str(int(row[0]) + 2),
            error.message,
            count=1,
        )
        raise InvalidRequest(message) from None


def _read_csv(path: Path) -> bytes:
    """Return the rows of a CSV or Excel file as CSV. Raises InvalidRequest for a file
    that is too large, and for columns that are separated by semicolons.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise InvalidRequest(f"the file has more than {_MOST_BYTES / 1e6:.0f} MB; split it")
    body = _excel_to_csv(path) if path.suffix.lower() == ".xlsx" else path.read_bytes()
    header = body.partition(b"\n")[0]
    if b";" in header and b"," not in header:
        raise InvalidRequest("semicolons separate its columns; save it with commas, or as .xlsx")
    return body


def _excel_to_csv(path: Path) -> bytes:
    """Return the first sheet without columns that have no name, and without empty
    rows.
    """
    sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
    sheet.reset_dimensions()  # Some programs write a wrong size of the sheet.
    rows = list(
        filter(
            any,
            map(_texts, sheet.iter_rows(values_only=True)),
        )
    )
    header = rows[0] if rows else []
    width = max(
        (index for index, name in enumerate(header, 1) if name),
        default=0,
    )
    return csv_text((row + [""] * width)[:width] for row in rows).encode()


def _texts(row: Iterable[object]) -> list[str]:
    return [as_text(value) or "" for value in row]


def predict_csv(model: OnnxModel, body: bytes) -> tuple[Columns, Columns]:
    """Return all columns of a CSV text, and the predictions for its rows.

    Numbers are as in the server's JSON: a float32 has few digits, and NaN is None. An
    output with several values per row becomes a column per class or index. Raises
    OnnxserveError for a text that does not fit the model.
    """
    schema = model.schema
    feeds = mlflow_protocol.decode(CSV, body, schema)
    outputs = model.run(feeds)
    header, *records = (record.fields for record in csv_records(io.BytesIO(body)))
    columns = map(list[object], zip(*records, strict=True))
    inputs = dict(zip(header, columns, strict=True))
    if schema.columns:
        for name, array in schema.to_columns(feeds).items():
            if array.dtype != object:
                inputs[name] = _json_values(array)
    return inputs, _predictions(model.artifact, outputs, len(records))


def _predictions(
    artifact: Artifact,
    outputs: Mapping[str, Array],
    rows: int,
) -> Columns:
    """Return the columns of all outputs for a number of rows; those of `predict` come
    first.
    """
    predictions = Columns()
    for output in sorted(artifact.outputs, key=lambda entry: entry.name not in artifact.prediction):
        array = outputs[output.name]
        if array.shape[:1] != (rows,):  # Some outputs are a summary of all rows.
            array = np.broadcast_to(array, (rows, *array.shape))
        columns = array.reshape(rows, -1).T
        names = _column_names(artifact, output, len(columns))
        predictions |= zip(names, map(_json_values, columns), strict=True)
    return predictions


def _column_names(artifact: Artifact, output: Output, count: int) -> list[str]:
    """Return the names of the columns of an output with `count` values per row."""
    if output.role == "probabilities" and len(artifact.classes) == count:
        return [f"probability of {label}" for label in artifact.classes]
    name = "prediction" if artifact.prediction == (output.name,) else output.name
    if count == 1:
        return [name]
    return [f"{name} {index}" for index in range(count)]


def _json_values(array: Array) -> list[object]:
    values: list[object] = orjson.loads(mlflow_protocol.encode(array))["predictions"]
    return values


def save_columns(path: Path, columns: Columns) -> None:
    """Write columns to a CSV or Excel file (.xlsx). A text that a spreadsheet would run
    as a formula is quoted with '.

    Raises InvalidRequest if the file cannot be written. An existing file is replaced
    only by a complete file.
    """
    records = chain([columns], zip(*columns.values(), strict=True))
    rows = (list(map(_quoted, record)) for record in records)
    if path.suffix.lower() == ".xlsx":
        workbook = openpyxl.Workbook(write_only=True)
        file = io.BytesIO()
        sheet = workbook.create_sheet("predictions")
        for row in rows:
            sheet.append(row)
        workbook.save(file)
        content = file.getvalue()
    else:
        content = csv_text(map(_texts, rows)).encode()
    try:
        write_atomically(path, content)
    except OSError as error:
        raise InvalidRequest(f"{path.name} cannot be written: {error.strerror}") from None


def _quoted(value: object) -> object:
    if isinstance(value, int | float):
        return value
    return _ILLEGAL.sub("", _FORMULA.sub("'", as_text(value) or ""))


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()
