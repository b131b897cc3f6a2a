"""The answers of MLServer 1.7.1 in V2, and of KServe's servers 0.21 in V1:
`server.v2_names: mlserver`.

- https://github.com/SeldonIO/MLServer/tree/1.7.1: `mlserver/codecs`,
  `mlserver/cloudevents.py`, and the runtimes for scikit-learn, XGBoost, LightGBM,
  CatBoost and MLflow.
- https://github.com/kserve/kserve/tree/v0.20.0/python: `sklearnserver`, `xgbserver` and
  `lgbserver`.

`tests/contrib/mlserver/recordings` has answers of both.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_deploy_plugin.contrib.mlserver.metadata import (
    MLFLOW,
    content_type_of,
    describe_model,
    describe_server,
    parameters_of_settings,
    runtime_of,
    server_name,
    version_of,
)
from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.serve.protocols.content import (
    JSON,
    MOST_CONTAINERS,
    check_containers,
    dump_json,
    json_object,
    json_type,
    rows_of,
)
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
)
from mlflow_deploy_plugin.serve.protocols.schemas import ANY_OBJECT
from mlflow_deploy_plugin.serve.protocols.v2 import (
    RequestedOutput,
    Tensors,
    V2Answer,
    V2Names,
    V2Output,
    V2Request,
    bind_tensors,
    knows_name,
    parameters_of,
    unknown_output,
)
from mlflow_deploy_plugin.serve.protocols.v2_tensors import array_datatype
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array, Feeds
from mlflow_deploy_plugin.serve.runtime.model import OpaqueBody
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import UNNAMED_OUTPUT
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

PREDICT = "predict"
PREDICT_PROBA = "predict_proba"
SKLEARN = "SKLearnModel"
XGBOOST = "XGBoostModel"
PROBABILITIES_VARIABLE = "PREDICT_PROBA"
"""The variable of KServe's scikit-learn server: if it is `true`, V1 returns
probabilities.
"""
_BY_REQUEST = (SKLEARN, XGBOOST)
"""The runtimes that return the requested outputs. The others ignore them."""
_OF_DOUBLES = ("sklearn", "lightgbm")
_NP = {"content_type": "np"}
_STR = {"content_type": "str"}
_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_MOST_OUTPUTS = 4
"""The maximum number of requested outputs. A repeated output makes the answer
longer.
"""


def takes_body(artifact: Artifact) -> bool:
    """Return True for a pyfunc whose signature does not name its inputs."""
    return bool(artifact.undescribed) and artifact.flavor == PYTHON_FUNCTION


def bind(
    tensors: Tensors, parameters: Mapping[str, object], artifact: Artifact, schema: Schema
) -> Feeds | OpaqueBody:
    """Return the feeds of a request or, for a pyfunc without a signature, the body: a
    table for the content type `pd`, otherwise an array.

    A table for a model of one array becomes this array. Raises SchemaMismatch if a
    tensor does not fit, and InvalidRequest for several tensors in place of one array.
    """
    takes_columns = bool(artifact.columns or schema.keys) or len(artifact.inputs) != 1
    if takes_columns and not takes_body(artifact):
        # MLServer's models ignore additional columns.
        known = {name: tensor for name, tensor in tensors.items() if knows_name(name, schema)}
        return bind_tensors(known or tensors, schema)
    is_table = content_type_of(parameters, artifact) == "pd"
    if not tensors or (len(tensors) > 1 and not is_table):
        raise InvalidRequest(
            f"the model takes one tensor, and the request has {len(tensors)}; for columns, set "
            "the parameter content_type of the request to pd"
        )
    if takes_body(artifact):
        document: dict[str, object] = {"inputs": next(iter(tensors.values()))[1]}
        if is_table:
            # A list shares its small integers; numpy would make an object of each byte.
            cells = [
                column if column.dtype.kind == "f" else column.tolist()
                for column in _columns(tensors)
            ]
            rows = list(zip(*cells, strict=True))
            document = {"dataframe_split": {"columns": list(tensors), "data": rows}}
        return _body(document, schema.keys)
    if len(tensors) > 1:
        head, array = next(iter(tensors.values()))
        matrix = np.stack(_columns(tensors), axis=1)
        if matrix.dtype.kind == "O" != array.dtype.kind:
            raise head.mismatch(" and the others are texts and numbers; the model takes one array")
        head = head._replace(shape=matrix.shape, datatype=array_datatype(matrix))
        tensors = {head.name: (head, matrix)}
    return bind_tensors(tensors, schema)


def _body(document: Mapping[str, object], keys: tuple[str, ...]) -> OpaqueBody:
    """Return the body for a pyfunc. Raises InvalidRequest if it has more arrays than a
    caller's body may have: a binary tensor may have a byte per row.
    """
    content = dump_json(document)
    check_containers(content)
    return OpaqueBody(JSON, content, keys=keys)


def _columns(tensors: Tensors) -> Sequence[Array]:
    """Return the tensors as columns of the same length. Raises SchemaMismatch if their
    shapes are not [N] or [N, 1] with the same N of at most `MOST_CONTAINERS`.
    """
    columns = []
    for head, array in tensors.values():
        if array.ndim == 0 or array.shape[1:] not in ((), (1,)):
            raise head.mismatch(" is used as a column; the shape [N] or [N, 1] is expected")
        if len(array) > MOST_CONTAINERS:
            raise head.mismatch(f" has more rows than a table may have, {MOST_CONTAINERS}")
        columns.append(array.reshape(-1))
        if len(columns[-1]) != len(columns[0]):
            raise head.mismatch(f" has {len(columns[-1])} rows; {len(columns[0])} are expected")
    return columns


def requested_outputs(
    document: Mapping[str, object], artifact: Artifact
) -> tuple[RequestedOutput, ...]:
    """Return the requested outputs; `predict` if the request names none. An output may
    be repeated.

    Raises InvalidRequest or SchemaMismatch if `outputs` is not an array of objects with
    the names that the model's runtime knows.
    """
    default = (RequestedOutput(default_output(artifact)),)
    entries = document.get("outputs")
    if entries is None:
        return default
    if not isinstance(entries, list):
        raise InvalidRequest(
            f"outputs is a JSON {json_type(entries)}; an array of objects is expected",
        )
    if runtime_of(artifact) not in _BY_REQUEST:
        return default
    if len(entries) > _MOST_OUTPUTS:
        raise InvalidRequest(
            f"outputs has {len(entries)} objects; at most {_MOST_OUTPUTS} are allowed"
        )
    requested = []
    for position, entry in enumerate(entries):
        name = entry.get("name") if isinstance(entry, dict) else None
        if name not in (PREDICT, PREDICT_PROBA):
            raise unknown_output(str(name), (PREDICT, PREDICT_PROBA))
        parameters = parameters_of(f"outputs[{position}]", entry)
        is_binary = parameters.get("binary_data") is True
        content_type = str(parameters.get("content_type") or "")
        requested.append(RequestedOutput(name, is_binary, content_type))
    return tuple(requested) or default


def default_output(artifact: Artifact) -> str:
    """Return the output of a request without `outputs`: the setting
    `parameters.extra.predict_fn` of scikit-learn's runtime, otherwise `predict`.
    """
    extra = parameters_of_settings(artifact).get("extra")
    is_probability = isinstance(extra, Mapping) and extra.get("predict_fn") == PREDICT_PROBA
    if runtime_of(artifact) == SKLEARN and is_probability:
        return PREDICT_PROBA
    return PREDICT


def answer(request: V2Request, variant: ServedVariant, response: InferResponse) -> V2Answer:
    """Return the answer of MLServer's runtime. Raises SchemaMismatch if the model lacks
    a requested output.
    """
    artifact = variant.loaded.predictor.artifact
    runtime = runtime_of(artifact)
    parameters: Mapping[str, str] = {}
    if runtime == MLFLOW:
        parameters, outputs = encode_prediction(artifact, response.outputs)
    else:
        arrays = named_predictions(artifact, response.outputs)
        outputs = []
        for output in request.outputs:
            if output.name not in arrays:
                raise unknown_output(output.name, arrays)
            outputs.append(encode_output(output, arrays[output.name]))
    # The id of the response has a limit, unlike the caller's id in the body.
    headers = cloud_event(variant.endpoint, response.id)
    return V2Answer(
        request.id or response.id, version_of(variant.loaded), outputs, parameters, headers
    )


def named_predictions(artifact: Artifact, outputs: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return `predict` and, if the model has them, the probabilities as
    `predict_proba`. The original of a file has these names itself.
    """
    if PREDICT in outputs:
        return outputs
    predictions = [_widened(artifact, outputs[name]) for name in artifact.prediction or outputs]
    named = {PREDICT: predictions[0]}
    if len(predictions) > 1 and {array.ndim for array in predictions} == {1}:
        named[PREDICT] = np.column_stack(predictions)
    for output in artifact.outputs:
        if output.role == "probabilities":
            named[PREDICT_PROBA] = _widened(artifact, outputs[output.name])
    return named


def _widened(artifact: Artifact, array: Array) -> Array:
    """Return the numbers of a graph in the datatype of the original's, if the original
    computes 64-bit numbers.
    """
    if array.dtype == np.float32 and artifact.framework in _OF_DOUBLES:
        return array.astype(np.float64)
    return array


def encode_output(output: RequestedOutput, array: Array) -> V2Output:
    """Return an output in the form of MLServer's NumpyCodec or, for texts and if the
    request asks for it, StringCodec.
    """
    content = _NP
    if array.dtype.kind == "O" and output.content_type == "str":
        content = _STR
    return V2Output(output.name, _matrix(array), content, output.is_binary)


def encode_prediction(
    artifact: Artifact, outputs: Mapping[str, Array]
) -> tuple[Mapping[str, str], list[V2Output]]:
    """Return the content type of an answer of MLServer's MLflow runtime, and its
    outputs.

    A pyfunc of custom code that returns columns has returned a table (`pd`), or arrays
    by name (`dict`) if one of them is not a column; its texts are a list (`str`).
    Everything else is an array (`np`), whose name is `output-1`.
    """
    names = [name for name in artifact.prediction if name in outputs] or outputs
    arrays = {name: _widened(artifact, outputs[name]) for name in names}
    is_code = artifact.framework.startswith("pyfunc.")
    if len(arrays) == 1 and not (is_code and UNNAMED_OUTPUT not in arrays):
        (array,) = arrays.values()
        content = _NP
        if is_code and array.dtype.kind == "O":
            content = _STR
        return content, [V2Output("output-1", _matrix(array), content)]
    if any(array.ndim != 1 for array in arrays.values()):
        named_arrays = [V2Output(name, _matrix(array), _NP) for name, array in arrays.items()]
        return {"content_type": "dict"}, named_arrays
    columns = [
        V2Output(name, _matrix(array), _STR if array.dtype.kind == "O" else {})
        for name, array in arrays.items()
    ]
    return {"content_type": "pd"}, columns


def _matrix(array: Array) -> Array:
    """Return an array of one dimension as [N, 1], like MLServer's codecs."""
    if array.ndim < 2:
        return array.reshape(-1, 1)
    return array


@cache
def _namespace() -> str:
    """Return the namespace of the pod; empty outside of Kubernetes."""
    try:
        return _NAMESPACE.read_text().strip()
    except OSError:
        return ""


def cloud_event(endpoint: str, id_: str) -> dict[str, str]:
    """Return the headers of an answer as an event (https://cloudevents.io), which
    payload loggers read.
    """
    server = server_name()
    namespace = _namespace()
    headers = {
        "Ce-Specversion": "0.3",
        "Ce-Source": f"io.seldon.serving.deployment.{server}",
        "Ce-Type": "io.seldon.serving.inference.response",
        "Ce-Modelid": endpoint,
        "Ce-Inferenceservicename": server,
        "Ce-Endpoint": endpoint,
        "Ce-Id": id_,
        "Ce-Requestid": id_,
    }
    if namespace:
        headers["Ce-Namespace"] = namespace
        headers["Ce-Source"] += f".{namespace}"
    return headers


def decode_v1(
    headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode a `:predict` request of KServe's servers, whose content type is ignored:
    rows in `inputs` or `instances`.

    Raises InvalidRequest if the body has no rows, and SchemaMismatch if they do not
    fit.
    """
    document = json_object(body)
    rows = document.get("inputs", document.get("instances"))
    if not isinstance(rows, list):
        raise InvalidRequest(
            f"inputs or instances is a JSON {json_type(rows)}; an array of rows is expected"
        )
    records = read_records(rows)
    if takes_body(variant.loaded.predictor.artifact):
        form: dict[str, object] = {"inputs": rows}
        if records:
            form = {"dataframe_records": records}
        return DecodedRequest({}, encode_v1, body=_body(form, variant.capture.keys))
    schema = variant.schema
    feeds = schema.from_records(records) if records else schema.from_array(rows)
    return DecodedRequest(feeds, encode_v1)


def read_records(rows: Sequence[object]) -> list[Mapping[str, Any]]:
    """Return the records of rows: objects, or arrays of objects; empty if the first
    value is not an object. An object of columns (arrays, or objects by row) has several
    records, as in pandas.

    Raises InvalidRequest if a later value is not an object, columns differ in length,
    or the records are more than the arrays and objects that a body may have.
    """
    records: list[Mapping[str, Any]] = []
    for position, row in enumerate(rows):
        for record in row if isinstance(row, list) else (row,):
            if not isinstance(record, dict):
                if not records:
                    return []
                raise InvalidRequest(
                    f"row {position} is a JSON {json_type(record)}; an object is expected, as in "
                    "row 0"
                )
            columns = {
                name: list(values.values()) if isinstance(values, dict) else values
                for name, values in record.items()
            }
            if not columns or not all(isinstance(values, list) for values in columns.values()):
                records.append(record)
            elif len(set(map(len, columns.values()))) == 1:
                if len(records) + len(next(iter(columns.values()))) > MOST_CONTAINERS:
                    raise InvalidRequest(
                        f"the columns have more than {MOST_CONTAINERS} rows; send fewer rows"
                    )
                cells = zip(*columns.values(), strict=True)
                records += [dict(zip(columns, values, strict=True)) for values in cells]
            else:
                raise InvalidRequest(f"the columns of row {position} have different lengths")
    return records


def encode_v1(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    """Return `{"predictions": …}`: the probabilities for XGBoost, whose booster returns
    the second of two, and for scikit-learn if `PREDICT_PROBA` asks for them.
    """
    artifact = variant.loaded.predictor.artifact
    runtime = runtime_of(artifact)
    if runtime == MLFLOW:
        prediction: Any = variant.loaded.predictor.prediction(response.outputs)
        if isinstance(prediction, dict):
            prediction = rows_of(prediction)
        return EncodedResponse(dump_json({"predictions": prediction}))
    arrays = named_predictions(artifact, response.outputs)
    prediction = arrays[PREDICT]
    probabilities = arrays.get(PREDICT_PROBA)
    wants_all = os.environ.get(PROBABILITIES_VARIABLE, "").lower() == "true"
    if probabilities is not None and runtime == XGBOOST:
        prediction = probabilities
        if probabilities.shape[1:] == (2,):
            prediction = probabilities[:, 1]
    if probabilities is not None and runtime == SKLEARN and wants_all:
        prediction = probabilities
    return EncodedResponse(dump_json({"predictions": prediction}))


_V1 = Protocol("tfserving", decode_v1, response={JSON: ANY_OBJECT}, takes_pyfuncs=True)
NAMES = V2Names(
    bind,
    requested_outputs,
    answer,
    version_of,
    describe_server,
    describe_model,
    {"tfserving": _V1},
)
