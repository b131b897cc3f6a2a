"""JSON Lines (https://jsonlines.org, also NDJSON): each input line is a record or row,
each output line a prediction.

A thousand lines are converted to arrays at a time, so that a large body does not become
Python objects all at once. Each line must contain all required columns.
"""

import io
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidRequest, SchemaMismatch
from mlflow_deploy_plugin.serve.protocols.content import (
    check_row_aligned,
    dump_json,
    json_type,
    load_json,
    rows_of,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds, concatenate_feeds
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema

MEDIA_TYPES = ("application/jsonl", "application/x-ndjson", "application/jsonlines")

_CHUNK = 1000
_MOST_BLANK = 100_000

_Line = tuple[int, Any]
"""The number of a line, counted from 1, and its document."""


def decode(body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a body. All lines are objects, all are arrays, or (for one
    column) all are bare values.

    Raises InvalidRequest if a line is not JSON or of another JSON type than the first,
    and SchemaMismatch if a line does not fit the signature, or there are no lines.
    """
    parts = list(_read_chunks(body, schema))
    if not parts:
        raise SchemaMismatch("the data has no rows; at least one line is needed")
    if len(parts) == 1:
        return parts[0]
    try:
        return concatenate_feeds(parts)
    except ValueError:
        raise SchemaMismatch("the lines contain tensors of different shapes") from None


def encode(prediction: Array | dict[str, Array]) -> bytes:
    """Return one prediction per line: a value, a list of values, or an object with the
    outputs by name.

    Raises SchemaMismatch if an output does not have one value, or list of values, per
    row.
    """
    if isinstance(prediction, dict):
        return b"".join(dump_json(row) + b"\n" for row in rows_of(prediction))
    check_row_aligned({PREDICTION: prediction})
    if prediction.dtype.kind not in "fiub" or not prediction.size:
        return b"".join(dump_json(row) + b"\n" for row in prediction)
    # Encode all numbers in one call, then turn the text between two rows into a line
    # break.
    end = (prediction.ndim - 1) * b"]"
    begin = (prediction.ndim - 1) * b"["
    rows = dump_json(prediction)[1:-1]
    return rows.replace(end + b"," + begin, end + b"\n" + begin) + b"\n"


def _read_chunks(body: bytes, schema: Schema) -> Iterator[Feeds]:
    """Yield the feeds of up to a thousand lines at a time. An error names the first
    wrong line.
    """
    kind = ""
    required = set()
    lines = _parse_lines(body)
    while chunk := list(islice(lines, _CHUNK)):
        if not kind:
            kind = json_type(chunk[0][1])
            if kind == "object":
                required = {column.name for column in schema.columns if column.required}
        for number, document in chunk:
            if isinstance(document, dict) != (kind == "object"):
                raise InvalidRequest(
                    f"line {number} is a JSON {json_type(document)}; the first line is a JSON "
                    f"{kind}",
                )
            if (
                required
                and not required <= document.keys()
                and (missing := schema.missing_columns(document))
            ):
                raise SchemaMismatch(f"line {number}: {missing.message}", column=missing.column)
        try:
            feeds = _read([document for _, document in chunk], kind, schema)
        except SchemaMismatch as error:
            # Find the first line that does not fit the signature.
            for number, document in chunk:
                try:
                    _read([document], kind, schema)
                except SchemaMismatch as line_error:
                    fault = line_error.message.replace(", row 0", "", 1)
                    raise SchemaMismatch(
                        f"line {number}: {fault}", column=line_error.column
                    ) from None
            # Each line fits the signature by itself.
            raise SchemaMismatch(
                f"lines {chunk[0][0]} to {chunk[-1][0]}: {error.message}", column=error.column
            ) from None
        yield feeds


def _parse_lines(body: bytes) -> Iterator[_Line]:
    """Yield the number and the document of each line that is not blank."""
    blank_lines = 0
    for number, line in enumerate(io.BytesIO(body), start=1):
        if line.isspace():
            blank_lines += 1
            if blank_lines > _MOST_BLANK:
                raise InvalidRequest(
                    f"line {number} is the {blank_lines}th blank line; send only rows",
                )
            continue
        try:
            yield number, load_json(line, "it is ")
        except InvalidRequest as error:
            raise InvalidRequest(f"line {number}: {error.message}") from None


def _read(documents: list[Any], kind: str, schema: Schema) -> Feeds:
    if kind == "object":
        return schema.from_records(documents)
    return schema.from_array(documents)
