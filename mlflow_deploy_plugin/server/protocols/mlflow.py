"""MLflow's scoring protocol: the body of `/invocations`, and its answer.

https://mlflow.org/docs/latest/genai/serving/custom-apps.html and `mlflow/pyfunc/scoring_server/__init__.py` (3.17):
exactly one of `dataframe_split`, `dataframe_records`, `instances`, `inputs` in JSON, or CSV with a header; the answer
is `{"predictions": …}`. `params` is accepted; an ONNX graph has none, and MLflow ignores those it does not know.
"""

import csv
import io
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest, SchemaMismatch, UnsupportedMediaType
from mlflow_deploy_plugin.runtime import Array, Feeds, Schema
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, dump_json, json_object, json_type, media_type
from mlflow_deploy_plugin.server.protocols.large_json import LARGE_BYTES, read_large_feeds


def decode(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """The feeds in the body of `/invocations`.

    Raises:
        UnsupportedMediaType: neither JSON nor CSV in UTF-8, or a parameter beside the charset.
        InvalidRequest: the body cannot be read, or holds none or several of the four fields.
        SchemaMismatch: it can be read, and does not fit the signature.
    """
    kind = media_type(content_type, _ACCEPTED)
    parameters = _parameters(content_type or "", kind) if content_type != kind else {}
    if kind == CSV:
        return read_csv(body, schema, parameters.get("header") != "absent")
    if len(body) >= LARGE_BYTES and (feeds := read_large_feeds(body, schema)) is not None:
        return feeds
    return decode_document(json_object(body), schema)


def decode_document(document: dict[str, Any], schema: Schema) -> Feeds:
    """As `decode`, for a body that is parsed already."""
    if len(document) == 1:
        ((field, value),) = document.items()
        if read := _READERS.get(field):
            return read(value, schema)
    present = [field for field in _READERS if field in document]
    if len(present) != 1:
        holds = ", ".join(repr(name[:30]) for name in islice(document, 10)) or "nothing"
        raise InvalidRequest(
            f"the JSON object must hold exactly one of the fields {', '.join(_READERS)}; this one holds {holds}"
        )
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidRequest(f"params is a JSON {json_type(params)}; an object is expected")
    return _READERS[present[0]](document[present[0]], schema)


def is_table(content_type: str | None, body: bytes) -> bool:
    """Whether a body that `decode` has read is a table to MLflow: CSV, `dataframe_split` or `dataframe_records`."""
    if media_type(content_type, _ACCEPTED) == CSV:
        return True
    may_be = b"dataframe_" in body or b"\\u" in body  # its letters may be escaped
    return may_be and not _TABLES.isdisjoint(json_object(body))


def encode(prediction: Array | dict[str, Array]) -> bytes:
    """`{"predictions": …}`: nested lists, a mapping of them by output, or records; see `OnnxModel.prediction`."""
    return dump_json({"predictions": prediction})


def _parameters(content_type: str, kind: str) -> dict[str, str]:
    """The parameters of the content type: `charset`, and for CSV `header=present|absent` (RFC 4180).

    What else would change the meaning is refused, as MLflow 1's `format=pandas-split`.
    """
    parameters: dict[str, str] = {}
    for parameter in content_type.split(";")[1:]:
        name, _, value = (part.strip(' \t"') for part in parameter.partition("="))
        name, value = name.lower(), value.lower()
        if name == "header" and kind == CSV:
            if value not in ("present", "absent"):
                raise UnsupportedMediaType(f"the Content-Type says header={value[:40]!r}; it is present or absent")
        elif name and name != "charset":
            known = "charset and header are" if kind == CSV else "only charset is"
            raise UnsupportedMediaType(f"the Content-Type has the parameter {name[:40]!r}; {known} understood")
        parameters[name] = value
    return parameters


def _dataframe_split(value: Any, schema: Schema) -> Feeds:
    """pandas' `to_dict(orient="split")`; its `index` is ignored, as in MLflow's answer."""
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise InvalidRequest("dataframe_split must be an object with the arrays `columns` and `data`")
    if unknown := value.keys() - _SPLIT_KEYS:
        raise InvalidRequest(f"dataframe_split holds {min(unknown)[:60]!r}; it takes columns, data and index")
    index, columns = value.get("index"), value.get("columns")
    if index is not None and (not isinstance(index, list) or len(index) != len(value["data"])):
        raise InvalidRequest(
            f"dataframe_split: index must be an array with one label for each of {len(value['data'])} rows"
        )
    if columns is None:
        return schema.from_array(value["data"])
    kinds = set(map(type, columns)) if isinstance(columns, list) else {object}
    if not kinds <= _NAMES:
        raise InvalidRequest("dataframe_split: columns must be an array of names")
    return schema.from_rows(columns if kinds == {str} else list(map(str, columns)), value["data"])


def _dataframe_records(value: Any, schema: Schema) -> Feeds:
    return schema.from_records(_rows("dataframe_records", value))


def _instances(value: Any, schema: Schema) -> Feeds:
    return _named_or_rows("instances", value, schema)


def _inputs(value: Any, schema: Schema) -> Feeds:
    return _named_or_rows("inputs", value, schema)


def _named_or_rows(field: str, value: Any, schema: Schema) -> Feeds:
    """Columns or tensors by name, one record (no value of it is a list), records, or rows without names."""
    if isinstance(value, dict):
        is_record = schema.columns and value and not any(isinstance(entry, list) for entry in value.values())
        return schema.from_records([value]) if is_record else schema.from_columns(value)
    rows = _rows(field, value)
    return schema.from_records(rows) if rows and isinstance(rows[0], dict) else schema.from_array(rows)


def _rows(field: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{field} is a JSON {json_type(value)}; an array is expected")
    return value


_ACCEPTED = (JSON, CSV)
_NAMES = {str, int}
_TABLES = frozenset({"dataframe_split", "dataframe_records"})
_SPLIT_KEYS = {"columns", "data", "index"}
_READERS: dict[str, Callable[[Any, Schema], Feeds]] = {
    "dataframe_split": _dataframe_split,
    "dataframe_records": _dataframe_records,
    "instances": _instances,
    "inputs": _inputs,
}


# CSV, typed by the signature: nothing is guessed from the text, not even whether it has a header.

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
    columns = _typed_columns(header, rows, schema)
    del lines, rows  # they take ten times as much as the text
    return schema.from_rows(header, list(zip(*columns, strict=True)))


def _typed_columns(header: list[str], rows: list[list[str]], schema: Schema) -> list[list[Any]]:
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
    read = _FIELD_READERS.get(types.get(name, "string"), str)
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


_FIELD_READERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("double", "float", "float16", "float32", "float64"), _float),
    **dict.fromkeys(("integer", "long"), _integer),
    **{f"{sign}int{bits}": _integer for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **dict.fromkeys(("boolean", "bool"), _boolean),
}
