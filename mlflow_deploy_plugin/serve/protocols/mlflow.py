"""MLflow's scoring protocol: the body of `/invocations`, in JSON or CSV, and its
response.

https://mlflow.org/docs/latest/genai/serving/custom-apps.html and
`mlflow/pyfunc/scoring_server/__init__.py` (3.17): A JSON body contains exactly one of
`dataframe_split`, `dataframe_records`, `instances` and `inputs`; CSV has a header.
`params` is accepted and ignored. The signature determines the types of CSV columns, and
the header is not guessed.
"""

import csv
import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from string import whitespace
from typing import Any

from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch, UnsupportedMediaType
from mlflow_deploy_plugin.core.tabular.csv_file import MISSING_TEXTS
from mlflow_deploy_plugin.serve.protocols.content import (
    CSV,
    JSON,
    dump_json,
    json_object,
    json_type,
    load_json,
    media_type,
)
from mlflow_deploy_plugin.serve.protocols.invocation_tables import check_separator
from mlflow_deploy_plugin.serve.protocols.large_json import read_large_csv, read_large_feeds
from mlflow_deploy_plugin.serve.runtime.artifact import INTEGERS
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

_ACCEPTED = (JSON, CSV)
_COLUMN_NAME_TYPES = {str, int}
_TABLE_FIELDS = frozenset({"dataframe_split", "dataframe_records"})
_SPLIT_KEYS = {"columns", "data", "index"}

MOST_COLUMNS = 100_000
MOST_LINES = 1_000_000
"""The maximum number of lines in a CSV text. Larger tables are sent as Arrow, or in
several requests.
"""
_AROUND_PARAMETER = ' \t"'
_FLOATS = frozenset({"float32", "float64"})
_BOOLEANS = {
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "1.0": True,
    "0.0": False,
}


def asks_for_stream(body: bytes) -> bool:
    """Return True for a JSON object with `"stream": true`, as for MLflow's agents."""
    if b'"stream"' not in body:
        return False
    with suppress(InvalidRequest):  # The reader of the body raises the error.
        return json_object(body).get("stream") is True
    return False


def decode(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in the body of `/invocations`.

    Raises UnsupportedMediaType if the body is not JSON or CSV in UTF-8 or its content
    type has other parameters, InvalidRequest if it cannot be parsed or has none of the
    four fields, and SchemaMismatch if it does not fit the signature.
    """
    media = media_type(content_type, _ACCEPTED)
    has_header = True
    for parameter in (content_type or "").split(";")[1:]:
        name, _, value = parameter.lower().partition("=")
        name = name.strip(_AROUND_PARAMETER)
        value = value.strip(_AROUND_PARAMETER)
        if name == "header" and media == CSV:
            if value not in ("present", "absent"):
                raise UnsupportedMediaType(
                    f"the Content-Type has header={value[:40]!r}; present or absent is expected",
                )
            has_header = value == "present"
        elif name and name != "charset":
            # Another parameter, such as MLflow 1's `format=pandas-split`, would change
            # the meaning.
            supported = "only charset and header are" if media == CSV else "only charset is"
            raise UnsupportedMediaType(
                f"the Content-Type has the parameter {name[:40]!r}; {supported} supported",
            )
    if media == CSV:
        return read_csv(body, schema, has_header)
    if (feeds := read_large_feeds(body, schema)) is not None:
        return feeds
    document = load_json(body)
    if not isinstance(document, dict):
        fields = ", ".join(_FIELD_DECODERS)
        raise InvalidRequest(
            f"the body is a JSON {json_type(document)}; an object with one of {fields} is expected",
        )
    return decode_document(document, schema)


def decode_document(document: dict[str, object], schema: Schema) -> Feeds:
    """Return the feeds in a JSON document of `/invocations`. Raises InvalidRequest
    unless it has exactly one of the four fields, and SchemaMismatch if the field's
    value does not fit the signature.
    """
    if len(document) == 1:  # The shortest way for most documents.
        ((field, value),) = document.items()
        if read := _FIELD_DECODERS.get(field):
            return read(value, schema)
    present = [field for field in _FIELD_DECODERS if field in document]
    if len(present) != 1:
        fields = ", ".join(repr(name[:30]) for name in islice(document, 10)) or "nothing"
        raise InvalidRequest(
            f"the JSON object must have exactly one of the fields {', '.join(_FIELD_DECODERS)}; "
            f"this object has {fields}",
        )
    params = document.get("params")
    if params is not None and not isinstance(params, dict):
        raise InvalidRequest(f"params is a JSON {json_type(params)}; an object is expected")
    return _FIELD_DECODERS[present[0]](document[present[0]], schema)


def is_table(content_type: str | None, body: bytes) -> bool:
    """Return True if MLflow treats a valid body as a table: CSV, `dataframe_split` or
    `dataframe_records`.
    """
    if media_type(content_type, _ACCEPTED) == CSV:
        return True
    may_be_table = b"dataframe_" in body or b"\\u" in body  # The field's letters may be escaped.
    return may_be_table and not _TABLE_FIELDS.isdisjoint(json_object(body))


def encode(prediction: Array | dict[str, Array]) -> bytes:
    """Return `{"predictions": …}`: nested lists, a mapping from outputs to lists, or
    records.
    """
    return dump_json({"predictions": prediction})


def _decode_split(value: object, schema: Schema) -> Feeds:
    """Decode pandas' `to_dict(orient="split")`. Its `index` is ignored, as in MLflow's
    response. Without `columns`, the rows are in the signature's order.

    Raises InvalidRequest if a field is unknown or of a wrong type, and SchemaMismatch
    if the rows do not fit the signature.
    """
    if not isinstance(value, dict) or not isinstance(value.get("data"), list):
        raise InvalidRequest(
            "dataframe_split must be an object with the arrays `columns` and `data`",
        )
    if unknown := value.keys() - _SPLIT_KEYS:
        raise InvalidRequest(
            f"dataframe_split has {min(unknown)[:60]!r}; it may have columns, data and index",
        )
    index = value.get("index")
    columns = value.get("columns")
    if index is not None and (not isinstance(index, list) or len(index) != len(value["data"])):
        raise InvalidRequest(
            "dataframe_split: index must be an array with one label per row "
            f"({len(value['data'])})",
        )
    if columns is None:
        return schema.from_array(value["data"])
    # This check covers most requests and is faster than checking every type.
    if columns == [*schema.names]:
        return schema.from_rows(schema.names, value["data"])
    types = set(map(type, columns)) if isinstance(columns, list) else {object}
    if not types <= _COLUMN_NAME_TYPES:
        raise InvalidRequest("dataframe_split: columns must be an array of names")
    if types != {str}:
        columns = list(map(str, columns))
    return schema.from_rows(columns, value["data"])


def _decode_named_or_rows(field: str, value: object, schema: Schema) -> Feeds:
    """Decode columns or tensors by name, a single record (without lists), several
    records, or rows without names.
    """
    if isinstance(value, dict):
        is_record = schema.columns and value and list not in set(map(type, value.values()))
        if is_record:
            return schema.from_records([value])
        return schema.from_columns(value)
    rows = _checked_rows(field, value)
    if rows and isinstance(rows[0], dict):
        return schema.from_records(rows)
    return schema.from_array(rows)


def _checked_rows(field: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{field} is a JSON {json_type(value)}; an array is expected")
    return value


_FIELD_DECODERS: dict[str, Callable[[object, Schema], Feeds]] = {
    "dataframe_split": _decode_split,
    "dataframe_records": lambda value, schema: schema.from_records(
        _checked_rows("dataframe_records", value),
    ),
    "instances": partial(_decode_named_or_rows, "instances"),
    "inputs": partial(_decode_named_or_rows, "inputs"),
}


def read_csv(body: bytes, schema: Schema, has_header: bool = True) -> Feeds:
    """Return the feeds in a CSV text. An empty field is null, and so is pandas' NA in a
    numeric column.

    A line of ASCII whitespace is skipped, but a quoted blank is a value. Without a
    header, the fields are the signature's columns in order; the columns of a tensor do
    not need names.

    Raises:
        InvalidRequest: the text is not UTF-8 or CSV, or has too many lines or columns.
        SchemaMismatch: a field does not have its column's type, a row and the header
            differ in length, or there are no rows.
    """
    if len(body) > MOST_COLUMNS:  # Refuse too many lines or columns before parsing them.
        line_count = body.count(b"\n")
        if b"\r" in body:
            line_count += body.count(b"\r") - body.count(b"\r\n")
        if line_count > MOST_LINES:
            raise InvalidRequest(
                f"the CSV has {line_count} lines; at most {MOST_LINES} are allowed: send fewer "
                "lines, or send Arrow",
            )
        _check_column_count(1 + body.lstrip().partition(b"\n")[0].count(b","))
    if has_header and schema.columns:
        check_separator(body, schema.names)
    if (feeds := read_large_csv(body, schema, has_header)) is not None:
        return feeds
    header, rows = _parse_csv_table(body, schema, has_header)
    numbers: list[list[float]] = []
    if schema.columns and _FLOATS.issuperset(map(schema.dtypes.get, header)):
        with suppress(ValueError):  # `read_column` reports bad values.
            if "_" not in "".join(chain.from_iterable(rows)):
                numbers = [list(map(float, fields)) for fields in rows]
    if numbers:
        del rows
        return schema.from_rows(header, numbers)
    if schema.columns:
        types: dict[str, str] = {column.name: column.type for column in schema.columns}
    else:  # All fields have the type of the tensor.
        dtype = schema.tensors[0].dtype if schema.tensors else "str"
        types = dict.fromkeys(header, dtype) | dict.fromkeys(schema.keys, "str")
    fields = zip(header, zip(*rows, strict=True), strict=False)
    columns = [read_column(name, types, texts) for name, texts in fields]
    del rows  # Free the texts, which take ten times the memory of the body.
    return schema.from_rows(header, list(zip(*columns, strict=True)))


def _parse_csv_table(
    body: bytes,
    schema: Schema,
    has_header: bool,
) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and the fields of each row.

    Raises InvalidRequest if the text is not UTF-8 or CSV, is empty, or has too many
    columns, and SchemaMismatch if the first line is a row instead of a header, or a row
    has more or fewer fields than there are columns.
    """
    try:
        texts = io.StringIO(body.decode("utf-8-sig"), newline="").readlines()
        reader = csv.reader(texts, strict=True)
        # Test the raw line, because a quoted blank is a value.
        rows = [
            fields
            for fields in reader
            if len(fields) > 1 or texts[reader.line_num - 1].strip(whitespace)
        ]
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"the CSV is not valid UTF-8: byte {error.start} is {body[error.start]:#04x}",
        ) from None
    except csv.Error as error:
        raise InvalidRequest(f"the body is not valid CSV: {error}") from None
    if not rows:
        raise InvalidRequest("the CSV is empty; a header line and at least one row are expected")
    _check_column_count(len(rows[0]))
    if has_header:
        header = rows.pop(0)
        is_header = True
        with suppress(ValueError):
            numbers = list(map(float, header))
            # Numbers are accepted as names if the model has such columns, or if the
            # numbers are the positions of the columns.
            if schema.columns:
                is_header = not schema.dtypes.keys().isdisjoint(header)
            else:
                is_header = numbers in (
                    list(range(len(header))),
                    list(range(1, len(header) + 1)),
                )
        if not is_header:
            raise SchemaMismatch(
                "the first line of the CSV has numbers instead of column names; send text/csv; "
                "header=absent if it is a row (the columns of a tensor may have the names 0, 1, …)",
            )
    elif schema.columns:
        header = list(schema.names)
    else:
        header = [str(position) for position in range(len(rows[0]))]
    for row, fields in enumerate(rows):
        if len(fields) != len(header):
            whose = "the header" if has_header else "the model's signature"
            raise SchemaMismatch(f"row {row} has {len(fields)} fields; {whose} has {len(header)}")
    return header, rows


def _check_column_count(count: int) -> None:
    if count > MOST_COLUMNS:
        raise InvalidRequest(f"the CSV has {count} columns; at most {MOST_COLUMNS} are allowed")


def read_column(
    name: str,
    types: dict[str, str],
    fields: Sequence[str],
) -> list[object]:
    """Return the values of the column `name`, with None for missing fields. Raises
    SchemaMismatch if a field does not have the column's type.

    The fields are parsed in one call, unless a field is missing, wrong or has `_`.
    """
    parse = _FIELD_PARSERS.get(types.get(name, "string"), str)
    if parse is str:
        return [text or None for text in fields]
    try:
        if "_" not in "".join(fields):
            parse_all = int if parse is _parse_integer else parse
            return list(map(parse_all, fields))
    except (KeyError, ValueError):
        pass  # Missing and wrong values are read one by one below.
    values: list[object] = []
    for row, text in enumerate(fields):
        if not text or text in MISSING_TEXTS:
            values.append(None)
            continue
        try:
            if "_" in text:  # Python would parse "1_000", but it is not a number in CSV.
                raise ValueError
            values.append(parse(text))
        except (KeyError, ValueError):
            label = f"column {name!r} ({types[name]}), row {row}"
            raise SchemaMismatch(
                f"{label}: {text[:60]!r} is not {types[name]}",
                column=name,
            ) from None
    return values


def _parse_integer(text: str) -> int | float:
    """Return an int, or a float for a number with a point or an exponent; the schema
    checks that it is whole.
    """
    try:
        return int(text)
    except ValueError:
        return float(text)


_FIELD_PARSERS: dict[str, Callable[[str], object]] = {
    **dict.fromkeys(("double", "float", "float16", "float32", "float64"), float),
    **dict.fromkeys(("integer", "long", *INTEGERS), _parse_integer),
    **dict.fromkeys(
        ("boolean", "bool"),
        lambda text: _BOOLEANS[text.strip().lower()],
    ),
}
