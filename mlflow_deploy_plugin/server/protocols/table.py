"""CSV, typed by the signature: nothing is guessed from the text, not even whether it has a header."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.runtime import Feeds, Schema

MOST_COLUMNS = 100_000
MOST_LINES = 1_000_000
"""Of a text; more rows come as Arrow, or in several requests."""
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}
_MISSING = frozenset(
    {"NA", "N/A", "n/a", "<NA>", "#NA", "#N/A", "#N/A N/A", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"}
    | {"1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
)
"""What pandas reads as a missing value; here only where a number or a boolean is expected: in a text, NA is Namibia."""


def read_csv(body: bytes, schema: Schema, has_header: bool = True) -> Feeds:
    """The feeds in a CSV text; an empty field is null, so is pandas' NA for a number; blank lines are skipped.

    Without a header the fields are the signature's columns, in its order (those of a tensor have no names anyway).

    Raises:
        InvalidRequest: not UTF-8, or not CSV.
        SchemaMismatch: a field is not of its column's type, a row has another length than the header, no rows.
    """
    lines = _parse(body)
    header, rows = (lines[0], lines[1:]) if has_header else (_default_header(lines[0], schema), lines)
    for row, fields in enumerate(rows):
        if len(fields) != len(header):
            whose = "the header" if has_header else "the model's signature"
            raise SchemaMismatch(f"row {row} has {len(fields)} fields; {whose} has {len(header)}")
    columns = _columns(header, rows, schema)
    del lines, rows  # they take ten times as much as the text
    return schema.from_rows(header, list(zip(*columns, strict=True)))


def _columns(header: list[str], rows: list[list[str]], schema: Schema) -> list[list[Any]]:
    types = _column_types(header, schema)
    by_column = zip(*rows, strict=True)
    return [_column(name, types, fields) for name, fields in zip(header, by_column, strict=True)] if rows else []


def _default_header(first: list[str], schema: Schema) -> list[str]:
    return list(schema.names) if schema.columns else [str(position) for position in range(len(first))]


def _parse(body: bytes) -> list[list[str]]:
    """The fields of each line; at least one line.

    Raises:
        InvalidRequest: not UTF-8, not CSV, empty, or with more lines or columns than are taken.
    """
    if len(body) > MOST_COLUMNS:
        _check_size(body)
    try:
        text = body.decode("utf-8-sig")
        read = csv.reader(io.StringIO(text, newline=""), strict=True)
        lines = [fields for fields in read if fields and not (len(fields) == 1 and fields[0].isspace())]
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the CSV is not valid UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    except csv.Error as error:
        raise InvalidRequest(f"the body is not valid CSV: {error}") from None
    if not lines:
        raise InvalidRequest("the CSV is empty; a line with the columns' names and at least one row are needed")
    _check_columns(len(lines[0]))
    return lines


def _check_size(body: bytes) -> None:
    """Refuses what would be many lines or columns, before a line is read."""
    lines = body.count(b"\n") + body.count(b"\r") - body.count(b"\r\n")
    if lines > MOST_LINES:
        raise InvalidRequest(f"the CSV has {lines} lines; at most {MOST_LINES} are taken: send fewer, or send Arrow")
    _check_columns(1 + body.lstrip().partition(b"\n")[0].count(b","))


def _check_columns(count: int) -> None:
    if count > MOST_COLUMNS:
        raise InvalidRequest(f"the CSV has {count} columns; at most {MOST_COLUMNS} are taken")


def _column_types(header: list[str], schema: Schema) -> dict[str, str]:
    """The type of each column; a table for a tensor has the tensor's type everywhere."""
    if schema.columns:
        return {column.name: column.type for column in schema.columns}
    return dict.fromkeys(header, schema.tensors[0].dtype if schema.tensors else "str")


def _column(name: str, types: dict[str, str], fields: Sequence[str]) -> list[Any]:
    """The values of one column, at once where Python reads all of them as we do."""
    read = _READERS.get(types.get(name, "string"), str)
    try:
        if read is _float and "_" not in "".join(fields):
            return list(map(float, fields))
    except ValueError:
        pass  # what is missing or wrong is dealt with one by one
    return [_field(name, types, row, field, read) for row, field in enumerate(fields)]


def _field(name: str, types: dict[str, str], row: int, text: str, read: Callable[[str], Any]) -> Any:
    if not text or (text in _MISSING and read is not str):
        return None
    try:
        return read(text)
    except (KeyError, ValueError):
        raise SchemaMismatch(f"column {name!r} ({types[name]}), row {row}: {text[:60]!r} is no {types[name]}") from None


def _float(text: str) -> float:
    return float(_without_underscore(text))


def _integer(text: str) -> int | float:
    """A number with a point or an exponent is a float here; the schema takes it where it is whole."""
    try:
        return int(_without_underscore(text))
    except ValueError:
        return _float(text)


def _without_underscore(text: str) -> str:
    """Python reads "1_000" as a number; a CSV file does not mean that."""
    if "_" in text:
        raise ValueError(text)
    return text


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.strip().lower()]


_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("double", "float", "float16", "float32", "float64"), _float),
    **dict.fromkeys(("integer", "long"), _integer),
    **{f"{sign}int{bits}": _integer for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("boolean", "bool"), _boolean),
}
