"""The short protocol of the guides: `/predict` for one record, `/predict/batch` for many."""

from typing import Any

from mlflow_deploy_plugin.errors import InvalidRequest
from mlflow_deploy_plugin.runtime import Array, Artifact, Feeds, Schema
from mlflow_deploy_plugin.server.protocols import mlflow
from mlflow_deploy_plugin.server.protocols.content import CSV, JSON, dump_json, load_json, load_json_object, media_type
from mlflow_deploy_plugin.server.protocols.mlflow import read_csv


def decode(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in one record: `{column: value, …}`, or `{"features": […]}` in the signature's order.

    For a graph without rows, a record is the whole of its tensors.

    Raises:
        UnsupportedMediaType: not JSON.
        InvalidRequest: not a JSON object.
        SchemaMismatch: it does not fit the signature.
    """
    document = load_json_object(content_type, body)
    if "features" in document and "features" not in schema.names:
        return schema.from_array([document["features"]] if schema.has_rows else document["features"])
    if schema.columns:
        return schema.from_records([document])
    if not schema.has_rows:
        return schema.from_columns(document)
    return schema.from_columns({name: [value] for name, value in document.items()})


def decode_batch(content_type: str | None, body: bytes, schema: Schema) -> Feeds:
    """Return the feeds in many records: a list of objects or of rows, or a body of `/invocations`.

    Raises:
        UnsupportedMediaType, InvalidRequest, SchemaMismatch: see `decode`.
    """
    if media_type(content_type, (JSON, CSV)) == CSV:
        return read_csv(body, schema)
    document = load_json(body)
    if isinstance(document, dict):
        return mlflow.decode_document(document, schema)
    if not isinstance(document, list):
        raise InvalidRequest('the body must be an array of records, or {"instances": […]} around one')
    return schema.from_records(document) if document and isinstance(document[0], dict) else schema.from_array(document)


def encode(artifact: Artifact, model: str, version: str, outputs: dict[str, Array], has_rows: bool = True) -> bytes:
    """Return `{"prediction", "probabilities"?, "model", "model_version"}` of the first row, or of all without rows."""
    prediction: Any = _predictions(artifact, outputs)
    if has_rows:
        is_one = not isinstance(prediction, dict)
        prediction = prediction[0] if is_one else {name: array[0] for name, array in prediction.items()}
    answer: dict[str, Any] = {"prediction": prediction}
    if has_rows and (probabilities := _probabilities(artifact, outputs)) is not None:
        answer["probabilities"] = probabilities[0]
    return dump_json({**answer, "model": model, "model_version": version})


def encode_batch(
    artifact: Artifact, model: str, version: str, outputs: dict[str, Array], has_rows: bool = True
) -> bytes:
    """Return `{"predictions", "probabilities"?, "count", "model", "model_version"}`."""
    answer: dict[str, Any] = {"predictions": _predictions(artifact, outputs)}
    if (probabilities := _probabilities(artifact, outputs)) is not None:
        answer["probabilities"] = probabilities
    count = len(outputs[artifact.prediction[0]]) if has_rows else 1
    return dump_json({**answer, "count": count, "model": model, "model_version": version})


def _predictions(artifact: Artifact, outputs: dict[str, Array]) -> Array | dict[str, Array]:
    """Return the label if the model has one, even if its `predict` returns probabilities: they have a field."""
    roles = {output.name: output.role for output in artifact.outputs}
    names = artifact.prediction
    if [roles.get(name) for name in names] == ["probabilities"]:
        names = tuple(name for name, role in roles.items() if role == "label") or names
    return outputs[names[0]] if len(names) == 1 else {name: outputs[name] for name in names}


def _probabilities(artifact: Artifact, outputs: dict[str, Array]) -> list[dict[Any, float]] | None:
    """Return class → probability for each row, or None if the model does not name the class of each column."""
    for output in artifact.outputs:
        array = outputs.get(output.name)
        if output.role == "probabilities" and array is not None and array.shape[1:] == (len(artifact.classes),):
            return [dict(zip(artifact.classes, row, strict=True)) for row in array.tolist()]
    return None
