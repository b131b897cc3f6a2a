"""The rows of a file in batches. Only one batch is in memory, except for a JSON document, which is read whole.

A row keeps its form of the file, so that it is read by the same rules as a request: nothing is guessed here.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import IO, Any

import orjson

from mlflow_deploy_plugin.deployments.scoring import BODY_FORMS
from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.server import CSV, JSON, PARQUET, load_json
from mlflow_deploy_plugin.tabular import FileFormat, csv_records, first_line, json_lines, open_parquet


@dataclass(frozen=True)
class RowBatch:
    """Rows that are predicted with one request.

    Attributes:
        records: the rows in a form of the reader's own, which can be sliced.
        places: the place of each row in the file: `line 7`, `row 12`.
        content_type: of the body of /invocations.
        encode: makes that body of such records.
        position: the reader's position in the file after them, in bytes or rows.
    """

    records: Any
    places: Sequence[str]
    content_type: str
    encode: Callable[[Any], bytes]
    position: int = 0

    def __len__(self) -> int:
        return len(self.places)

    @property
    def body(self) -> bytes:
        return self.encode(self.records)

    def part(self, start: int, stop: int) -> "RowBatch":
        return replace(self, records=self.records[start:stop], places=self.places[start:stop])


@dataclass(frozen=True)
class RowFile:
    """The rows of a file.

    Attributes:
        name: of the file, for messages.
        length: of the file in the unit of `RowBatch.position`; None if nobody knows.
    """

    name: str
    length: int | None
    batches: Iterator[RowBatch]


def read_rows(file: IO[bytes], name: str, kind: FileFormat, batch_rows: int) -> RowFile:
    """Return the rows of an open file, `batch_rows` at a time.

    Raises (also while the batches are taken):
        InvalidRequest: it is not of this kind, or has no rows; the message says where.
    """
    match kind:
        case "csv":
            return RowFile(name, _length(file), _csv(file, name, batch_rows))
        case "jsonl":
            return RowFile(name, _length(file), _jsonl(file, name, batch_rows))
        case "json":
            rows = _json(file.read(), name, batch_rows)
            return RowFile(name, len(rows), iter(rows))
        case "parquet":
            return _parquet(file, name, batch_rows)


def _csv(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    header: bytes | None = None
    width = 0
    records: list[bytes] = []
    places: list[str] = []
    position = 0
    for record in csv_records(file, strict=True):
        position = record.position
        if record.error:
            raise InvalidRequest(f"{name}, line {record.line}: not valid CSV: {record.error}")
        if header is None:
            header, width = record.raw, len(record.fields)
            continue
        if len(record.fields) != width:
            raise InvalidRequest(f"{name}, line {record.line}: {len(record.fields)} fields; the header has {width}")
        records.append(record.raw)
        places.append(f"line {record.line}")
        if len(records) == batch_rows:
            yield RowBatch(records, places, CSV, partial(_csv_body, header), position)
            records, places = [], []
    if records:
        yield RowBatch(records, places, CSV, partial(_csv_body, header or b""), position)


def _csv_body(header: bytes, records: list[bytes]) -> bytes:
    return b"".join([header, *records])


def _jsonl(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    records: list[Any] = []
    places: list[str] = []
    position = 0
    for number, line, position in json_lines(file):
        record = _parse_json(line, f"{name}, line {number}")
        if records and isinstance(record, dict) != isinstance(records[0], dict):
            raise InvalidRequest(f"{name}, line {number}: one line is a JSON object, another is not")
        records.append(record)
        places.append(f"line {number}")
        if len(records) == batch_rows:
            yield RowBatch(records, places, JSON, _rows_body, position)
            records, places = [], []
    if records:
        yield RowBatch(records, places, JSON, _rows_body, position)


def _rows_body(records: list[Any]) -> bytes:
    form = "dataframe_records" if isinstance(records[0], dict) else "instances"
    return orjson.dumps({form: records})


def _json(text: bytes, name: str, batch_rows: int) -> list[RowBatch]:
    """Return the batches of a document: one of MLflow's forms, a list of rows or records, or a mapping of columns."""
    records, encode = _sliceable(_parse_json(text, name), name)
    places = [f"row {row} (from 0)" for row in range(len(records))]
    whole = RowBatch(records, places, JSON, encode)
    return [
        RowBatch(part.records, part.places, JSON, encode, position)
        for position, start in enumerate(range(0, len(whole), batch_rows), 1)
        for part in [whole.part(start, start + batch_rows)]
    ]


def _parse_json(text: bytes, where: str) -> Any:
    try:
        return load_json(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message.removeprefix('the body is ')}") from None


def _sliceable(document: Any, name: str) -> tuple[Any, Callable[[Any], bytes]]:
    """Return the rows of a document, and a function that encodes some of them in its form."""
    if isinstance(document, list):
        return document, _rows_body
    if not isinstance(document, dict):
        raise InvalidRequest(f"{name}: a JSON object or array is expected, with {', '.join(BODY_FORMS)}, or rows")
    form = next((form for form in BODY_FORMS if form in document), None)
    extras = {key: value for key, value in document.items() if key != form} if form else {}
    content = document[form] if form else document
    if isinstance(content, list):
        return content, lambda rows: orjson.dumps({**extras, form: rows})
    if form == "dataframe_split" and isinstance(content, dict) and isinstance(content.get("data"), list):
        head = {key: value for key, value in content.items() if key not in ("data", "index")}
        return content["data"], lambda rows: orjson.dumps({**extras, form: {**head, "data": rows}})
    if isinstance(content, dict) and _is_of_columns(content):

        def encode(rows: list[tuple[Any, ...]]) -> bytes:
            columns = dict(zip(content, zip(*rows, strict=True), strict=True))
            return orjson.dumps({**extras, form or "inputs": columns})

        return list(zip(*content.values(), strict=True)), encode
    if isinstance(content, dict) and content and not any(isinstance(value, list) for value in content.values()):
        return [content], _rows_body  # one record
    raise InvalidRequest(
        f"{name}: no rows are found in it: {', '.join(BODY_FORMS)}, or columns of one length, are expected"
    )


def _is_of_columns(content: Mapping[str, Any]) -> bool:
    lengths = {len(values) if isinstance(values, list) else -1 for values in content.values()}
    return len(lengths) == 1 and -1 not in lengths


def _parquet(file: IO[bytes], name: str, batch_rows: int) -> RowFile:
    import pyarrow as pa  # here: no other format needs it

    def batches(parquet: Any) -> Iterator[RowBatch]:
        row = 0
        try:
            for records in parquet.iter_batches(batch_size=batch_rows):
                places = [f"row {number} (from 0)" for number in range(row, row + len(records))]
                row += len(records)
                yield RowBatch(records, places, PARQUET, _parquet_body, row)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"{name}: row {row} and what follows cannot be read: {first_line(error)}") from None

    try:
        parquet = open_parquet(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{name} is not a Parquet file: {first_line(error)}") from None
    return RowFile(name, parquet.metadata.num_rows, batches(parquet))


def _parquet_body(records: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([records]), sink, compression="none")
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _length(file: IO[bytes]) -> int | None:
    """Return the length in bytes; None for a stream."""
    try:
        return os.fstat(file.fileno()).st_size if file.seekable() else None
    except OSError:  # no file of the system's
        return None
