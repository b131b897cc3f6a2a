"""The names of another server in the answers of V2 over REST and gRPC, which plug in by
the entry points of the group `onnxserve.v2_names`.

A server with the setting `server.v2_names: onnxserve` has none of them.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from mlflow_deploy_plugin.core.extensions import find_entry
from mlflow_deploy_plugin.serve.protocols import v2, v2_tensors
from mlflow_deploy_plugin.serve.protocols.content import JSON, dump_json
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
)
from mlflow_deploy_plugin.serve.protocols.schemas import ANY_OBJECT, BYTES
from mlflow_deploy_plugin.serve.protocols.v2 import V2Answer, V2Names
from mlflow_deploy_plugin.serve.variants import ServedVariant

OWN = "onnxserve"


def load_names(name: str) -> V2Names | None:
    """Return the names of this entry point, or None for our own. Raises InvalidConfig
    if the entry point is missing, and OnnxserveError if it cannot be loaded.
    """
    if name == OWN:
        return None
    names: V2Names = find_entry("onnxserve.v2_names", name, "set of names", (OWN,), V2Names)
    response = {JSON: ANY_OBJECT, v2.OCTETS: BYTES}
    named = replace(v2.V2, decode=partial(decode_named, names), response=response)
    return replace(names, protocols={**names.protocols, v2.V2.name: named})


def decode_named(
    names: V2Names, headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode an infer request of REST, which is answered with these names. Raises the
    errors of `v2.decode`.
    """
    artifact = variant.loaded.predictor.artifact
    request = v2.decode(headers, body, artifact, variant.schema, names)

    def respond(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return encode(variant.endpoint, names.answer(request, variant, response))

    return DecodedRequest(
        request.feeds, respond, request.id, request.body, parameters=request.parameters
    )


def encode(endpoint: str, answer: V2Answer) -> EncodedResponse:
    """Return the JSON of an answer, and the binary outputs after it."""
    entries = []
    blobs = []
    for name, array, parameters, is_binary in answer.outputs:
        entry: dict[str, object] = {
            "name": name,
            "shape": array.shape,
            "datatype": v2_tensors.array_datatype(array),
        }
        if is_binary:
            blobs.append(v2_tensors.to_binary(array))
            parameters = {**parameters, "binary_data_size": len(blobs[-1])}  # type: ignore[dict-item]
        else:
            entry["data"] = array.ravel()
        if parameters:
            entry["parameters"] = parameters
        entries.append(entry)
    document: dict[str, object] = {"model_name": endpoint}
    if answer.version:
        document["model_version"] = answer.version
    document |= {"id": answer.id, "parameters": answer.parameters, "outputs": entries}
    text = dump_json(document)
    if not blobs:
        return EncodedResponse(text, JSON, answer.headers)
    headers = {**answer.headers, v2.HEADER_LENGTH: str(len(text))}
    return EncodedResponse(b"".join([text, *blobs]), v2.OCTETS, headers)
