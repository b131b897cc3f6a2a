"""The names of another server in the answers of V2 over REST and gRPC, which plug in by
the entry points of the group `onnxserve.v2_names`.

A server with the setting `server.v2_names: onnxserve` has none of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from mlflow_deploy_plugin.core.extensions import find_entry
from mlflow_deploy_plugin.serve.protocols import v2, v2_tensors
from mlflow_deploy_plugin.serve.protocols.content import JSON, dump_json
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
)
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.serve.variants import LoadedVersion, ServedVariant

OWN = "onnxserve"


class V2Output(NamedTuple):
    """An output of an answer. With `is_binary`, its elements follow the JSON."""

    name: str
    array: Array
    parameters: Mapping[str, str]
    is_binary: bool = False


class V2Answer(NamedTuple):
    """The answer to an infer request. If `version` is empty, the answer has none."""

    id: str
    version: str
    outputs: Sequence[V2Output]
    parameters: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class V2Names:
    """The names of another server.

    Attributes:
        binding: how its requests are read.
        answer: returns the answer of a version. Raises SchemaMismatch if the version
            lacks a requested output.
        version: returns the version in paths and answers; empty if it has none.
        server_metadata: returns the document of `GET /v2`.
        model_metadata: returns the document of `GET /v2/models/NAME`, for the name and
            the version.
        protocols: protocols that answer in place of others, by the name of the other
            protocol. `load_names` adds V2.
    """

    binding: v2.Binding
    answer: Callable[[v2.V2Request, ServedVariant, InferResponse], V2Answer]
    version: Callable[[LoadedVersion], str]
    server_metadata: Callable[[], Mapping[str, object]]
    model_metadata: Callable[[str, Artifact], dict[str, object]]
    protocols: Mapping[str, Protocol]


def load_names(name: str) -> V2Names | None:
    """Return the names of this entry point, or None for our own. Raises InvalidConfig
    if the entry point is missing, and OnnxserveError if it cannot be loaded.
    """
    if name == OWN:
        return None
    names: V2Names = find_entry("onnxserve.v2_names", name, "set of names", (OWN,), V2Names)
    named = replace(v2.V2, decode=partial(decode_named, names))
    return replace(names, protocols={**names.protocols, v2.V2.name: named})


def decode_named(
    names: V2Names, headers: Mapping[str, str], body: bytes, variant: ServedVariant, limit: int
) -> DecodedRequest:
    """Decode an infer request of REST, which is answered with these names. Raises the
    errors of `v2.decode`.
    """
    artifact = variant.loaded.predictor.artifact
    request = v2.decode(headers, body, artifact, variant.schema, names.binding)

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
