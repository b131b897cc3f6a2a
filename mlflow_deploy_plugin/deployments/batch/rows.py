"""The rows of a file in batches. Only one batch is in memory, except for a JSON document, which is read whole.

A row keeps its form of the file, so that it is read by the same rules as a request: nothing is guessed here.
"""

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson

from mlflow_deploy_plugin.deployments.batch.formats import FileFormat
from mlflow_deploy_plugin.deployments.scoring import BODY_FORMS
from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.server.protocols.arrow import PARQUET
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, load_json


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
            return _parquet(file if file.seekable() else io.BytesIO(file.read()), name, batch_rows)


def _csv(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    lines = _Lines(file)
    reader = csv.reader(lines, strict=True)
    header: bytes | None = None
    width = 0
    records: list[bytes] = []
    places: list[str] = []
    while True:
        number = lines.number + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InvalidRequest(f"{name}, line {number}: not valid CSV: {error}") from None
        record = lines.taken()
        if fields is None:
            break
        if not fields or (len(fields) == 1 and (not fields[0] or fields[0].isspace())):
            continue  # a blank line is no row, here as in the body of a request
        if header is None:
            header, width = record, len(fields)
            continue
        if len(fields) != width:
            raise InvalidRequest(f"{name}, line {number}: {len(fields)} fields; the header has {width}")
        records.append(record)
        places.append(f"line {number}")
        if len(records) == batch_rows:
            yield RowBatch(records, places, CSV, partial(_csv_body, header), lines.bytes)
            records, places = [], []
    if records:
        yield RowBatch(records, places, CSV, partial(_csv_body, header or b""), lines.bytes)


class _Lines:
    """The lines of a file as text for `csv.reader`, and as bytes for the request."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._taken: list[bytes] = []
        self.number = 0
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            self.bytes += len(line)
            self._taken.append(line)
            # the server or the model refuses a row that is not UTF-8
            yield line.decode("utf-8-sig" if self.number == 1 else "utf-8", errors="replace")

    def taken(self) -> bytes:
        """Return the lines since the last call, which are those of one record."""
        record = b"".join(self._taken)
        self._taken.clear()
        return record if record.endswith(b"\n") else record + b"\n"


def _csv_body(header: bytes, records: list[bytes]) -> bytes:
    return b"".join([header, *records])


def _jsonl(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    records: list[Any] = []
    places: list[str] = []
    position = 0
    for number, line in enumerate(file, 1):
        position += len(line)
        if line.isspace():
            continue
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
        names = list(content)
        rows = list(zip(*content.values(), strict=True))
        return rows, lambda part: orjson.dumps({**extras, form or "inputs": _columns(names, part)})
    if isinstance(content, dict) and content and not any(isinstance(value, list) for value in content.values()):
        return [content], _rows_body  # one record
    raise InvalidRequest(
        f"{name}: no rows are found in it: {', '.join(BODY_FORMS)}, or columns of one length, are expected"
    )


def _columns(names: list[str], rows: list[tuple[Any, ...]]) -> dict[str, list[Any]]:
    return {name: list(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}


def _is_of_columns(content: Mapping[str, Any]) -> bool:
    lengths = {len(values) if isinstance(values, list) else -1 for values in content.values()}
    return len(lengths) == 1 and -1 not in lengths


def _parquet(file: IO[bytes], name: str, batch_rows: int) -> RowFile:
    import pyarrow as pa  # here: no other kind needs it
    import pyarrow.parquet as pq

    def batches(parquet: Any) -> Iterator[RowBatch]:
        row = 0
        try:
            for records in parquet.iter_batches(batch_size=batch_rows):
                places = [f"row {number} (from 0)" for number in range(row, row + len(records))]
                row += len(records)
                yield RowBatch(records, places, PARQUET, _parquet_body, row)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRequest(f"{name}: row {row} and what follows cannot be read: {_first_line(error)}") from None

    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(f"{name} is not a Parquet file: {_first_line(error)}") from None
    return RowFile(name, parquet.metadata.num_rows, batches(parquet))


def _parquet_body(records: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_batches([records]), sink, compression="none")
    encoded: bytes = sink.getvalue().to_pybytes()
    return encoded


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


@contextmanager
def open_input(path: str, stdin: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open the file, or standard input for `-`; raise InvalidConfig if it is missing or cannot be read."""
    if path == "-":
        yield stdin
        return
    try:
        file = Path(path).open("rb")  # noqa: SIM115 - closed below; only errors of open get this message
    except OSError as error:
        raise InvalidConfig(f"the file {path} cannot be read: {error.strerror}") from None
    with file:
        yield file


def _length(file: IO[bytes]) -> int | None:
    """Return the length in bytes; None for a stream."""
    try:
        return os.fstat(file.fileno()).st_size if file.seekable() else None
    except OSError:  # no file of the system's
        return None
