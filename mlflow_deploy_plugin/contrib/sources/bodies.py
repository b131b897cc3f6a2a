"""The request and the response of a prediction, which another server has logged, as
columns.

A body is CSV without a header, or JSON:

- MLflow's four fields
  (https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/), with
  `predictions`;
- `instances` or `inputs`, with `predictions` or `outputs`, of KServe's V1
  (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol)
  and of TensorFlow Serving (https://www.tensorflow.org/tfx/serving/api_rest);
- the tensors of V2
  (https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md);
- an array of rows, or of predictions.

Bodies are untrusted: each fault raises InvalidRequest, with its place and its reason.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, Field, ValidationError

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX, PREDICTION
from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.protocols.content import load_json
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

MOST_BYTES = 16 * 1024 * 1024
"""The maximum size of a body, as that of a server by default."""
MOST_CHARACTERS = 256
"""The maximum length of an id, a version and the name of a column."""
PRINTABLE = r"^\P{C}*$"
MOST_COLUMNS = 10_000
"""The maximum number of columns, because each becomes a column of the log."""


class Head(BaseModel):
    """The identity of an exchange."""

    id: str = Field(min_length=1, max_length=MOST_CHARACTERS, pattern=PRINTABLE)
    time: datetime
    version: str | None = Field(max_length=MOST_CHARACTERS, pattern=PRINTABLE)


def read_head(id: object, time: object, version: object = None) -> Head:
    """Return the identity of an exchange.

    Args:
        time: an ISO 8601 text, milliseconds or seconds since 1970, or a datetime. A
            time without a time zone is in UTC.
    """
    try:
        return Head.model_validate({"id": id, "time": time, "version": version})
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidRequest(f"{first['loc'][0]}: {first['msg']}") from None


def read_exchange(
    head: Head, names: Sequence[str], request: object, response: object
) -> Exchange | None:
    """Return the exchange of two bodies, which are bytes or texts; None if there is no
    response.

    `names` are the model's inputs, in order. If they are empty, rows without names
    become the column `input`, and CSV the columns `0`, `1` and so on.
    """
    if response is None and request is not None:
        return None
    place = "request"
    try:
        inputs, _ = read_columns(request, names, "input")
        place = "response"
        outputs, version = read_columns(response, (), "predictions")
    except InvalidRequest as error:
        raise InvalidRequest(f"{place}: {error.message}") from None
    rows = len(next(iter(inputs.values()), ()))
    if "0" in outputs and len(outputs) == rows and set(map(len, outputs.values())) == {1}:
        # SageMaker's XGBoost answers N rows with one line of N fields.
        outputs = {PREDICTION: [value for (value,) in outputs.values()]}
    head = read_head(head.id, head.time, head.version or version)
    return make_exchange(head, inputs, outputs)


def read_columns(body: object, names: Sequence[str], unnamed: str) -> tuple[Columns, object]:
    """Return the columns of a request or a response, and `model_version` of a V2
    response.

    A column of CSV is numbers if all its fields are numbers or empty. An array of one
    element in each row becomes this element.
    """
    if isinstance(body, str):
        body = body.encode(errors="surrogatepass")
    if not isinstance(body, bytes) or len(body) > MOST_BYTES:
        raise InvalidRequest(f"a text of at most {MOST_BYTES} bytes is expected")
    columns: dict[str, Any] = {}
    signature = tuple(Column(name, "string") for name in names)
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"[", b"{")):
        for name, fields in read_csv(body, SentSchema(signature, (), ()), False).items():
            try:
                columns[name] = [None if field is None else float(field) for field in fields]
            except ValueError:
                columns[name] = fields
        return columns, None
    document = load_json(body, "")
    if isinstance(document, list):
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


def make_exchange(head: Head, inputs: Columns, outputs: Columns) -> Exchange:
    """Return the exchange of these columns.

    The output that is named `prediction`, or is the only one with one value per row, is
    `prediction`.
    """
    rows = len(next(iter(inputs.values()), ()))
    if not rows or not outputs or len(inputs) + len(outputs) > MOST_COLUMNS:
        raise InvalidRequest(f"no rows, no predictions, or more than {MOST_COLUMNS} columns")
    single = {name for name, values in outputs.items() if list not in set(map(type, values))}
    prediction = single if len(single) == 1 else single & {PREDICTION}
    answers = {
        PREDICTION if name in prediction else OUTPUT_PREFIX + name: values
        for name, values in outputs.items()
    }
    for name, values in chain(inputs.items(), answers.items()):
        if len(name) > MOST_CHARACTERS:
            raise InvalidRequest(f"{short_repr(name)} is longer than {MOST_CHARACTERS} characters")
        if len(values) != rows:
            raise InvalidRequest(f"{short_repr(name)} has {len(values)} rows, the request {rows}")
        try:
            name.encode()
            kind = pa.array(values).type
        except (pa.ArrowException, OverflowError, UnicodeError):
            raise InvalidRequest(
                f"{short_repr(name)} has values of several types, or invalid text"
            ) from None
        rank = 1
        while pa.types.is_list(kind) and rank < MAX_RANK:  # Parquet's reader fails at 500.
            kind = kind.value_type
            rank += 1
        if pa.types.is_nested(kind):
            raise InvalidRequest(f"{short_repr(name)} has objects, or too many dimensions")
    time = head.time.replace(tzinfo=head.time.tzinfo or UTC)
    return Exchange(head.id, time, inputs, answers, head.version or "")
