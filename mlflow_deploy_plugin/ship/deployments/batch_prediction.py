"""Batch prediction of the rows of a file, by the server of a deployment, or by a server
of a version in this process.

Only one batch of rows is in memory, except for a JSON document, which is read
completely. Rows are sent in the format of the file (Parquet rows as Arrow), so that the
server decodes them like any other request.
"""

import base64
import io
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from http import HTTPStatus
from itertools import chain, groupby, islice
from typing import IO, TYPE_CHECKING, Any

import orjson

from mlflow_deploy_plugin.core.column_names import PREDICTION
from mlflow_deploy_plugin.core.errors import (
    BodyTooLarge,
    InferenceError,
    InvalidRequest,
    OnnxserveError,
)
from mlflow_deploy_plugin.core.logs import LEVEL
from mlflow_deploy_plugin.core.messages import REPEATED_HEADER, without_row_number
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.statedir.files import temporary_folder
from mlflow_deploy_plugin.core.tabular.csv_file import CsvRecord, csv_records
from mlflow_deploy_plugin.core.tabular.row_files import (
    FileFormat,
    first_line,
    json_lines,
    open_parquet,
)
from mlflow_deploy_plugin.serve.client.client import response_error
from mlflow_deploy_plugin.serve.client.rows import BODY_FORMS
from mlflow_deploy_plugin.serve.embed import local_app
from mlflow_deploy_plugin.serve.inference_log.label_files import LabelColumns
from mlflow_deploy_plugin.serve.messages import RawRequest
from mlflow_deploy_plugin.serve.protocols import arrow
from mlflow_deploy_plugin.serve.protocols.content import CSV, JSON, load_json
from mlflow_deploy_plugin.serve.protocols.invocation_tables import take_column
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.ship.deployments.server_client import ServerSession, post

if TYPE_CHECKING:
    from pyarrow import Table

    from mlflow_deploy_plugin.ship.deployments.scoring import ScoringTarget

_TRIES = 6
_MODEL_LIMITS = {"server.request_timeout_seconds": 3600, "server.max_body_bytes": 2**31}

Predictor = Callable[["RowBatch", bool], object]
"""A function that returns the predictions of a batch, as in the response of
/invocations. The last argument is True for rows of a failed request that are sent again
to find the refused row.
"""
Answer = tuple[dict[str, Any], str]
"""The JSON object of a server's response, and its prediction id."""
_Rows = Any
"""A sliceable batch of rows, as the reader of the file returns it: a list, or a
`pyarrow.RecordBatch`.
"""


@dataclass(frozen=True)
class RowBatch:
    """Rows that are predicted with one request.

    Attributes:
        places: the position of each row in the file, such as `line 7` or `row 12`.
        content_type: the content type of the request body that `encode` returns.
        event_time: the time of the rows' events as in RFC 3339; empty if it is unknown.
    """

    records: _Rows
    places: Sequence[str]
    content_type: str
    encode: Callable[[_Rows], bytes]
    event_time: str = ""

    def __len__(self) -> int:
        return len(self.places)

    @property
    def body(self) -> bytes:
        return self.encode(self.records)

    def part(self, start: int, stop: int) -> "RowBatch":
        return replace(self, records=self.records[start:stop], places=self.places[start:stop])


def read_rows(file: IO[bytes], name: str, kind: FileFormat, batch_rows: int) -> Iterator[RowBatch]:
    """Return the rows of an open file in batches of `batch_rows`.

    Raises InvalidRequest, possibly during the iteration, if the file is not in the
    format `kind`.
    """
    readers = {"csv": _csv, "json": _json, "jsonl": _jsonl, "parquet": _parquet}
    return readers[kind](file, name, batch_rows)


@contextmanager
def server_predictor(target: "ScoringTarget") -> Iterator[Predictor]:
    """Yield a predictor that sends the rows to a server, with retries while the server
    is overloaded or being changed.

    Predictions include the endpoint's key columns (`_with_keys`).
    """
    url = f"{target.url}/invocations"
    seconds = target.timeout_seconds
    with ServerSession() as session:

        def answer(body: bytes, content_type: str, headers: Mapping[str, str]) -> Answer:
            return post(session, url, body, content_type, seconds, _TRIES, headers)

        yield _predictor(answer, target.has_pyfunc, target.keys)


@contextmanager
def model_predictor(model_uri: str) -> Iterator[Predictor]:
    """Yield a predictor that calls a server of the version in this process, which ends
    with the block.

    Raises the errors of `resolve`, `download` and `local_app`.
    """
    # Without a handler, the server's warnings would be on stderr, next to the error.
    logging.getLogger("mlflow_deploy_plugin").addHandler(logging.NullHandler())
    with ExitStack() as held:
        if LEVEL not in os.environ:  # Likewise the tracebacks of a pyfunc.
            os.environ[LEVEL] = "CRITICAL"
            held.callback(os.environ.pop, LEVEL)
        temporary = held.enter_context(temporary_folder("onnxserve-predict-"))
        folder = download(resolve(model_uri).source, temporary)
        has_pyfunc = read_served_artifact(folder).flavor == PYTHON_FUNCTION
        app = held.enter_context(local_app(folder, "model", "1", _MODEL_LIMITS))

        def answer(body: bytes, content_type: str, headers: Mapping[str, str]) -> Answer:
            fields = {"content-type": content_type, "accept": JSON, **headers}
            response = app.handle(RawRequest("POST", "/invocations", fields, body))
            if response.status != HTTPStatus.OK:
                raise response_error(response.status, response.body, response.headers)
            return orjson.loads(response.body), ""

        yield _predictor(answer, has_pyfunc)


def _predictor(
    answer: Callable[[bytes, str, Mapping[str, str]], Answer],
    has_pyfunc: bool,
    keys: Sequence[str] = (),
) -> Predictor:
    """Return a predictor of a server, whose function `answer` returns the JSON object
    and the prediction id for a body, a content type and headers. A pyfunc receives
    Arrow rows as JSON, so that MLflow's functions parse the rows and encode the
    predictions.
    """

    def predict(batch: RowBatch, is_repeated: bool) -> object:
        headers = {REPEATED_HEADER.lower(): "1"} if is_repeated else {}
        if batch.event_time:
            headers["x-event-time"] = batch.event_time
        content_type = batch.content_type
        body = batch.body
        if content_type == arrow.STREAM and has_pyfunc:
            content_type = JSON
            body = _arrow_as_json(body)
        document, prediction_id = answer(body, content_type, headers)
        predictions: object = document.get("predictions")
        if not keys:
            return predictions
        return _with_keys(predictions, _key_columns(content_type, body, keys), prediction_id)

    return predict


def _with_keys(
    predictions: object, columns: Mapping[str, list[object]], prediction_id: str
) -> object:
    """Return the keys and the prediction of each row, or `predictions` unchanged if the
    columns differ in length.
    """
    outputs = predictions.values() if isinstance(predictions, dict) else [predictions]
    lengths = {_column_length(values) for values in (*outputs, *columns.values())}
    if len(lengths) != 1 or -1 in lengths:
        return predictions
    (count,) = lengths
    label_columns = LabelColumns()
    rows = []
    for row, prediction in enumerate(_split_by_row(predictions, count, "the answer")):
        document = {name: values[row] for name, values in columns.items()}
        document |= {label_columns.prediction_id: prediction_id, label_columns.row: row}
        if not isinstance(prediction, dict):
            prediction = {PREDICTION: prediction}
        rows.append(document | prediction)
    return rows


def split_by_event_time(batch: RowBatch, name: str, column: str) -> Iterator[RowBatch]:
    """Yield the rows of a batch in parts, each with one time in `column`. An empty
    column yields the batch unchanged. A time without an offset is in UTC.

    Raises InvalidRequest if the column is missing, or with the position of a row
    without a time.
    """
    if not column:
        yield batch
        return
    values = _key_columns(batch.content_type, batch.body, (column,)).get(column)
    if values is None:
        raise InvalidRequest(
            f"{name}, {batch.places[0]}: there is no column {column!r} for --event-time"
        )
    times = []
    for value, place in zip(values, batch.places, strict=True):
        moment = value
        try:
            if isinstance(value, str):
                moment = datetime.fromisoformat(value)
            elif isinstance(value, date) and not isinstance(value, datetime):
                moment = datetime.combine(value, datetime.min.time())
            if not isinstance(moment, datetime):
                raise ValueError("not a time")
            if not moment.tzinfo:
                moment = moment.replace(tzinfo=UTC)
            times.append(moment.isoformat())
        except ValueError:
            raise InvalidRequest(
                f"{name}, {place}: {column} is {value!r:.60}; a time like 2013-07-01T12:30:00Z is "
                "expected"
            ) from None
    start = 0
    for time, rows in groupby(times):
        stop = start + len(list(rows))
        yield replace(batch.part(start, stop), event_time=time)
        start = stop


def _key_columns(content_type: str, body: bytes, keys: Sequence[str]) -> dict[str, list[object]]:
    """Return the values of the columns `keys` in a request body, by column name.
    Columns that the body lacks are omitted.
    """
    if content_type == CSV:
        header, *rows = [record.fields for record in csv_records(io.BytesIO(body))]
        columns: dict[str, list[object]] = {}
        for name in keys:
            if name in header:
                position = header.index(name)
                columns[name] = [row[position] or None for row in rows]
        return columns
    if content_type == JSON:
        document = load_json(body)
        taken = {name: take_column(document, name) for name in keys}
        return {name: values for name, values in taken.items() if values is not None}
    table = _read_arrow(body)
    return {name: table.column(name).to_pylist() for name in keys if name in table.column_names}


def predict_batch(
    predict: Predictor, name: str, batch: RowBatch, is_repeated: bool = False
) -> list[object]:
    """Return one plain value per row of a batch. A refused batch is halved until the
    first refused row is known.

    Raises InvalidRequest with the position of this row, and BodyTooLarge if a single
    row is too large.
    """
    try:
        predictions = predict(batch, is_repeated)
    except (InvalidRequest, InferenceError) as error:
        is_too_large = isinstance(error, BodyTooLarge)
        if len(batch) > 1:
            middle = len(batch) // 2
            is_repeated = is_repeated or not is_too_large
            halves = batch.part(0, middle), batch.part(middle, len(batch))
            return list(
                chain.from_iterable(
                    predict_batch(predict, name, half, is_repeated) for half in halves
                )
            )
        if is_too_large:
            raise
        reason = without_row_number(error.message)
        raise InvalidRequest(f"{name}, {batch.places[0]}: {reason}") from None
    return _split_by_row(predictions, len(batch), f"{name}, {batch.places[0]}")


def _csv(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    """Yield the rows of a CSV file in batches, whose bodies begin with the file's
    header.
    """

    def records() -> Iterator[CsvRecord]:
        width = 0
        for record in csv_records(file):
            width = width or len(record.fields)
            if fault := record.fault(width):
                raise InvalidRequest(f"{name}, line {record.line}: {fault}")
            yield record

    rows = records()
    header = b"".join(record.raw for record in islice(rows, 1))
    while batch := list(islice(rows, batch_rows)):
        yield RowBatch(
            records=[record.raw for record in batch],
            places=[f"line {record.line}" for record in batch],
            content_type=CSV,
            encode=lambda lines: b"".join([header, *lines]),
        )


def _jsonl(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    """Yield the lines of a JSON Lines file in batches."""
    lines = json_lines(file)
    while batch := list(islice(lines, batch_rows)):
        places = [f"line {number}" for number, _, _ in batch]
        records = [_parse_json(line, f"{name}, line {number}") for number, line, _ in batch]
        yield RowBatch(records, places, JSON, _rows_body)


def _json(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    """Yield the rows of a JSON document in batches."""
    records, encode = _sliceable(_parse_json(file.read(), name), name)
    places = [f"row {row} (from 0)" for row in range(len(records))]
    document = RowBatch(records, places, JSON, encode)
    for start in range(0, len(document), batch_rows):
        yield document.part(start, start + batch_rows)


def _rows_body(records: Sequence[object]) -> bytes:
    form = "dataframe_records" if isinstance(records[0], dict) else "instances"
    return orjson.dumps({form: records})


def _parse_json(text: bytes, where: str) -> object:
    try:
        return load_json(text, subject="")
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error.message}") from None


def _sliceable(document: object, name: str) -> tuple[_Rows, Callable[[_Rows], bytes]]:
    """Return the rows of a JSON document, and a function that encodes some of the rows
    as a document of the same form.

    The document has one of MLflow's forms, or is a list of rows or records, a mapping
    of columns, or one record. Raises InvalidRequest for any other document.
    """
    if isinstance(document, list):
        return document, _rows_body
    if not isinstance(document, dict):
        raise InvalidRequest(
            f"{name}: a JSON object or array is expected, with {', '.join(BODY_FORMS)}, or rows"
        )
    form = next((form for form in BODY_FORMS if form in document), None)
    extras = {}
    if form:
        extras = {key: value for key, value in document.items() if key != form}
    content = document[form] if form else document
    if isinstance(content, list):
        return content, lambda rows: orjson.dumps({**extras, form: rows})
    if isinstance(content, dict):
        if form == "dataframe_split" and isinstance(content.get("data"), list):
            head = {key: value for key, value in content.items() if key not in ("data", "index")}
            return content["data"], lambda rows: orjson.dumps(
                {**extras, form: {**head, "data": rows}}
            )
        lengths = set(map(_column_length, content.values()))
        if lengths == {-1}:
            return [content], _rows_body  # The document is a single record.
        if len(lengths) == 1:

            def encode(rows: list[tuple[object, ...]]) -> bytes:
                columns = dict(zip(content, zip(*rows, strict=True), strict=True))
                return orjson.dumps({**extras, form or "inputs": columns})

            return list(zip(*content.values(), strict=True)), encode
    raise InvalidRequest(
        f"{name}: it has no rows: {', '.join(BODY_FORMS)}, or columns of equal length, are expected"
    )


def _parquet(file: IO[bytes], name: str, batch_rows: int) -> Iterator[RowBatch]:
    """Yield the rows of a Parquet file in batches."""
    import pyarrow as pa  # No other format needs pyarrow.

    def encode(records: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, records.schema) as writer:
            writer.write_batch(records)
        encoded: bytes = sink.getvalue().to_pybytes()
        return encoded

    row = 0
    try:
        for records in open_parquet(file).iter_batches(batch_size=batch_rows):
            places = [f"row {number} (from 0)" for number in range(row, row + len(records))]
            row += len(records)
            yield RowBatch(records, places, arrow.STREAM, encode)
    except (pa.ArrowException, OSError) as error:
        raise InvalidRequest(
            f"{name}: row {row} and later rows cannot be read as Parquet: {first_line(error)}"
        ) from None


def _read_arrow(body: bytes) -> "Table":
    import pyarrow as pa  # No other format needs pyarrow.

    return pa.ipc.open_stream(body).read_all()


def _arrow_as_json(body: bytes) -> bytes:
    """Convert an Arrow body to a JSON body, with bytes in base64 and infinity as the
    word that MLflow parses.

    Raises InvalidRequest if a value has no JSON form, such as a time span.
    """

    def plain(value: bytes | Decimal | date) -> str | float:
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, Decimal):
            return float(value)
        return value.isoformat()

    table = _read_arrow(body)
    try:
        rows = zip(*(column.to_pylist() for column in table.columns), strict=True)
        split = {"columns": table.column_names, "data": list(rows)}
        return json.dumps({"dataframe_split": split}, default=plain).encode()
    except (AttributeError, ValueError, OverflowError) as error:  # Time values raise the last two.
        raise InvalidRequest(f"the rows cannot be sent as JSON: {first_line(error)}") from None


def _split_by_row(predictions: object, count: int, where: str) -> list[object]:
    """Return one prediction per row from the server's answer: a list, or a mapping from
    each output to a list. Raises OnnxserveError if there are not `count` predictions.
    """
    if isinstance(predictions, dict):
        lengths = set(map(_column_length, predictions.values()))
        if lengths == {count}:
            rows = zip(*predictions.values(), strict=True)
            return [dict(zip(predictions, row, strict=True)) for row in rows]
    if isinstance(predictions, list):
        if len(predictions) == count:
            return predictions
        answer = f"{len(predictions)} predictions"
    else:
        answer = f"a {type(predictions).__name__}"
    raise OnnxserveError(
        f"{where}: the model returned {answer} for {count} rows; one prediction per row is required"
    )


def _column_length(values: object) -> int:
    """Return the number of values of a column; -1 for a value that is not a list."""
    return len(values) if isinstance(values, list) else -1
