"""The records of other servers' logs as exchanges.

- SageMaker's data capture, JSON Lines:
  https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html
  and, for the ids of labels,
  https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-model-quality-merge.html
- Databricks' inference tables of the AI Gateway, and the older ones:
  https://docs.databricks.com/aws/en/ai-gateway/inference-tables-serving-endpoints and
  https://docs.databricks.com/aws/en/machine-learning/model-serving/inference-tables
- Pairs of the events that KServe's logger sends:
  https://kserve.github.io/website/docs/model-serving/predictive-inference/logger

A body is CSV without a header, if its content type declares it, or JSON:

- MLflow's four fields
  (https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/), with
  `predictions`;
- `instances` or `inputs`, with `predictions` or `outputs`, of KServe's V1
  (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol)
  and of TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest);
- the tensors of V2
  (https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md);
- an array of rows, or of predictions.

Records are untrusted: each fault raises InvalidRequest, with its place and its reason.
The functions return None for a record without a prediction.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.serve.protocols.content import base64_text, load_json
from mlflow_deploy_plugin.serve.protocols.mlflow import decode_document, read_csv
from mlflow_deploy_plugin.serve.protocols.v2_tensors import (
    MAX_RANK,
    from_json,
    read_tensor_header,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Column, Tensor
from mlflow_deploy_plugin.serve.runtime.schemas.sent_schema import SentSchema
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.watch.observed.exchange import Exchange

Columns = dict[str, list[Any]]

_MOST_BYTES = 16 * 1024 * 1024
"""The maximum size of a body, equal to a server's default."""
_MOST_CHARACTERS = 256
"""The maximum length of an id, a version and the name of a column."""
_PRINTABLE = r"^\P{C}*$"
_MOST_COLUMNS = 10_000
"""The maximum number of columns, because each becomes a column of the log."""
_PARTS = {"endpointInput": "request", "endpointOutput": "response"}


class ExchangeHead(BaseModel):
    """The identity of an exchange. Its time is an ISO 8601 text, milliseconds or
    seconds since 1970, or a datetime; without a time zone, it is in UTC.
    """

    id: str = Field(min_length=1, max_length=_MOST_CHARACTERS, pattern=_PRINTABLE)
    time: datetime
    version: str | None = Field(max_length=_MOST_CHARACTERS, pattern=_PRINTABLE)


def sagemaker_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a line; None if no response was captured. The id is the
    caller's `inferenceId`, or `eventId`.
    """
    event = _read_object(record, "eventMetadata")
    captured = _read_object(record, "captureData")
    pair = {"id": event.get("inferenceId") or event.get("eventId")}
    pair["time"] = event.get("inferenceTime")
    for side, part in _PARTS.items():
        capture = _read_object(captured, side)
        body = capture.get("data")
        if capture.get("encoding") == "BASE64":
            body = base64_text(body, side)
        pair[part] = body
        pair[f"{part}_type"] = capture.get("observedContentType")
    return kserve_exchange(pair, names)


def databricks_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a row; None if its status is not 200. Only older tables
    have the version. A body that is too large for Databricks is missing.
    """
    status = record.get("status_code")
    if not isinstance(status, int):
        raise InvalidRequest(f"status_code is {short_repr(status)}; a number is expected")
    if status != 200:
        return None
    if errors := record.get("logging_error_codes"):
        raise InvalidRequest(f"Databricks has not logged the bodies: {short_repr(errors)}")
    head = {
        "id": record.get("databricks_request_id"),
        "time": record.get("request_time") or record.get("timestamp_ms"),
        "version": _read_object(record, "request_metadata").get("model_version"),
    }
    return kserve_exchange({**record, **head}, names)


def _read_object(owner: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a field that is an object; empty if it is missing or anything else."""
    value = owner.get(name)
    return value if isinstance(value, Mapping) else {}


def kserve_exchange(record: Mapping[str, Any], names: Sequence[str]) -> Exchange | None:
    """Return the exchange of a request and its response; None if there is no response.
    The records of other servers are converted to this form.

    Args:
        record: the fields of `ExchangeHead`; the bodies `request` and `response`, which
            are bytes or texts; and their content types `request_type` and
            `response_type`.
        names: the model's inputs, in order. If they are empty, rows without names
            become the column `input`, and CSV the columns `0`, `1` and so on.
    """
    if record.get("response") is None and record.get("request") is not None:
        return None
    version = record.get("version")
    place = "request"
    try:
        inputs, _ = read_columns(record, place, names, "input")
        place = "response"
        outputs, answered_by = read_columns(record, place, (), "predictions")
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error.message}") from None
    rows = len(next(iter(inputs.values()), ()))
    if "0" in outputs and len(outputs) == rows and set(map(len, outputs.values())) == {1}:
        # SageMaker's XGBoost answers N rows with one line of N fields.
        outputs = {PREDICTION: [value for (value,) in outputs.values()]}
    return make_exchange({**record, "version": version or answered_by}, inputs, outputs)


def read_columns(
    record: Mapping[str, Any], part: str, names: Sequence[str], unnamed: str
) -> tuple[Columns, object]:
    """Return the columns of the request or the response, and `model_version` of a V2
    response.

    A column of CSV is numbers if all its fields are numbers or empty. An array of one
    element in each row becomes this element.
    """
    body = record.get(part)
    if isinstance(body, str):
        body = body.encode(errors="surrogatepass")
    if not isinstance(body, bytes) or len(body) > _MOST_BYTES:
        raise InvalidRequest(f"a text of at most {_MOST_BYTES} bytes is expected")
    columns: dict[str, Any] = {}
    signature = tuple(Column(name, "string") for name in names)
    if "csv" in str(record.get(f"{part}_type")):
        for name, fields in read_csv(body, SentSchema(signature, (), ()), False).items():
            try:
                columns[name] = [None if field is None else float(field) for field in fields]
            except ValueError:
                columns[name] = fields
        return columns, None
    document = load_json(body, "")
    if not isinstance(document, dict):
        document = {"inputs": document}
    version = document.get("model_version")
    for field in "predictions", "outputs":
        if field in document and "inputs" not in document:
            document = {"inputs": document[field]}
    tensors = document.get("inputs")
    if b'"datatype"' in body and isinstance(tensors, list):
        columns = tensor_columns(tensors, names)
    else:
        # The only name may be that of a tensor, whose rows are arrays.
        tensor = Tensor(names[0] if len(names) == 1 else unnamed, "str", (-1,))
        schema = SentSchema(signature[1:] and signature, (tensor,), ())
        columns = dict(decode_document(document, schema))
    for name, values in columns.items():
        if all(isinstance(value, list) and len(value) == 1 for value in values):
            columns[name] = [value for (value,) in values]
    return columns, version


def tensor_columns(entries: Sequence[Any], names: Sequence[str]) -> Columns:
    """Return the values of V2 tensors by name, or by `names` for the only tensor with
    the shape [N, number of names].
    """
    arrays: dict[str, Any] = {}
    for position, entry in enumerate(entries):
        head = read_tensor_header(position, entry)
        if not head.shape or head.name in arrays:
            raise head.mismatch(" is repeated, or has no rows")
        with np.errstate(over="raise"):
            arrays[head.name] = from_json(head, entry.get("data"))
    if len(arrays) == 1 and head.shape[1:] == (len(names),):
        arrays = dict(zip(names, arrays[head.name].T, strict=True))
    return {name: array.tolist() for name, array in arrays.items()}


def make_exchange(head: Mapping[str, object], inputs: Columns, outputs: Columns) -> Exchange:
    """Return the exchange of these columns.

    The output that is named `prediction`, or is the only one with one value per row, is
    `prediction`.
    """
    single = {name for name, values in outputs.items() if list not in set(map(type, values))}
    prediction = single if len(single) == 1 else single & {PREDICTION}
    answers = {
        PREDICTION if name in prediction else OUTPUT_PREFIX + name: values
        for name, values in outputs.items()
    }
    columns = {**inputs, **answers}
    if not inputs or not outputs:
        raise InvalidRequest("no inputs, or no predictions")
    if len(columns) > _MOST_COLUMNS or max(map(len, columns)) > _MOST_CHARACTERS:
        raise InvalidRequest(
            f"more than {_MOST_COLUMNS} columns, or a name of more than {_MOST_CHARACTERS} letters"
        )
    try:
        known = ExchangeHead.model_validate(head)
        schema = pa.table(columns).schema
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"{first['loc'][0]}: {first['msg']}") from None
    except (pa.ArrowException, OverflowError, UnicodeError) as error:
        raise InvalidRequest(f"the columns are not rows: {one_line(error)}") from None
    for field in schema:
        kind = field.type
        rank = 0
        while pa.types.is_list(kind) and rank < MAX_RANK:  # Parquet's reader fails at 500.
            kind = kind.value_type
            rank += 1
        if pa.types.is_nested(kind):
            raise InvalidRequest(f"{short_repr(field.name)} has objects, or too many dimensions")
    time = known.time.replace(tzinfo=known.time.tzinfo or UTC)
    return Exchange(known.id, time, inputs, answers, known.version or "")
