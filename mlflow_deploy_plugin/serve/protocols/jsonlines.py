"""JSON Lines (https://jsonlines.org, also NDJSON): each input line is a record or row,
each output line a prediction.

A thousand lines are converted to arrays at a time, so that a large body does not become
Python objects all at once. Each line must contain all required columns.
"""

import io
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import BodyTooLarge, InvalidRequest, SchemaMismatch
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

NO_LINES = "the data has no rows; at least one line is needed"
_CHUNK = 1000
_MOST_BLANK = 100_000

_Line = tuple[int, Any]
"""The number of a line, counted from 1, and its document."""


class LineReader:
    """A reader that receives pieces of a body and yields feeds of up to a thousand
    lines.

    Every method raises InvalidRequest if a line is not JSON or is of another JSON type
    than the first line, SchemaMismatch with the line number if a line does not fit the
    signature, and BodyTooLarge above `most_bytes`.
    """

    def __init__(self, schema: Schema, most_bytes: int = sys.maxsize) -> None:
        self._schema = schema
        self._most_bytes = most_bytes
        self._unfinished = bytearray()
        self._line_number = 0
        self._blank_lines = 0
        self._json_type: str | None = None

    def feed(self, piece: bytes) -> Iterator[Feeds]:
        """Yield the feeds of the lines that this piece completes."""
        completed, end, begun = piece.rpartition(b"\n")
        if end:
            yield from self.read(b"".join((self._unfinished, completed, end)))
            self._unfinished.clear()
        self._unfinished += begun
        self._check_size(self._line_number + 1, len(self._unfinished))

    def end(self) -> Iterator[Feeds]:
        """Yield the feeds of the last line, which may lack a line break."""
        yield from self.read(bytes(self._unfinished))

    def read(self, text: bytes) -> Iterator[Feeds]:
        """Yield the feeds of the lines in a text that consists of complete lines.

        Raises InvalidRequest if a line has another JSON type than the first line, and
        SchemaMismatch if a line does not fit the signature; the error names the first
        wrong line.
        """
        lines = self._parse_lines(text)
        while chunk := list(islice(lines, _CHUNK)):
            _, first_document = chunk[0]
            self._json_type = self._json_type or json_type(first_document)
            required = set()
            if self._json_type == "object":
                required = {column.name for column in self._schema.columns if column.required}
            for number, document in chunk:
                if isinstance(document, dict) != (self._json_type == "object"):
                    raise InvalidRequest(
                        f"line {number} is a JSON {json_type(document)}; the first line is a JSON "
                        f"{self._json_type}",
                    )
                if (
                    required
                    and not required <= document.keys()
                    and (missing := self._schema.missing_columns(document))
                ):
                    raise SchemaMismatch(f"line {number}: {missing.message}", column=missing.column)
            try:
                feeds = _read([document for _, document in chunk], self._json_type, self._schema)
            except SchemaMismatch as error:
                # Find the first line that does not fit the signature.
                for number, document in chunk:
                    try:
                        _read([document], self._json_type, self._schema)
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

    def _parse_lines(self, text: bytes) -> Iterator[_Line]:
        """Yield the number and the document of each line that is not blank."""
        for line in io.BytesIO(text):
            self._line_number += 1
            self._check_size(self._line_number, len(line))
            if line.isspace():
                self._blank_lines += 1
                if self._blank_lines > _MOST_BLANK:
                    raise InvalidRequest(
                        f"line {self._line_number} is the {self._blank_lines}th blank line; send "
                        "only rows",
                    )
                continue
            try:
                yield self._line_number, load_json(line, "it is ")
            except InvalidRequest as error:
                raise InvalidRequest(f"line {self._line_number}: {error.message}") from None

    def _check_size(self, number: int, size: int) -> None:
        if size > self._most_bytes:
            raise BodyTooLarge(
                f"line {number} is larger than this server's limit of {self._most_bytes} bytes",
            )


def decode(body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in a body. All lines are objects, all are arrays, or (for one
    column) all are bare values.

    Raises InvalidRequest if a line is not JSON or of another JSON type than the first,
    and SchemaMismatch if a line does not fit the signature, or there are no lines.
    """
    parts = list(LineReader(schema).read(body))
    if not parts:
        raise SchemaMismatch(NO_LINES)
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


def _read(documents: list[Any], kind: str, schema: Schema) -> Feeds:
    if kind == "object":
        return schema.from_records(documents)
    return schema.from_array(documents)
