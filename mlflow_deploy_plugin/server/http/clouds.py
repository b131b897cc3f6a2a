"""The routes of the clouds: Vertex AI names its own, Azure ML asks `/score`; SageMaker's are MLflow's."""

import json
from collections.abc import Callable
from typing import Any

from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, OpaqueBody
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.negotiation import invocations
from mlflow_deploy_plugin.server.http.pipeline import DecodedRequest, EncodedResponse, Protocol, infer
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols import clouds, mlflow
from mlflow_deploy_plugin.server.protocols.content import JSON, check_depth, load_json, media_name


def vertex_predict(server: Server, request: RawRequest) -> RawResponse:
    """`AIP_PREDICT_ROUTE`. What is not JSON came by `rawPredict`: it is answered as at `/invocations`."""
    if media_name(request.headers.get("content-type")) != JSON:
        return invocations(server, request)
    return infer(server, request, VERTEX)


def _protocol(
    name: str, read: Callable[[str | None, bytes], dict[str, Any]], encode: Callable[[Any], bytes]
) -> Protocol:
    """A cloud's JSON, read as MLflow's document. A pyfunc reads that itself, and so is given its params."""

    def answer_arrays(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(encode(variant.loaded.predictor.prediction(response.outputs)))

    def answer_body(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        predictions = load_json(response.body)["predictions"]
        return EncodedResponse(
            encode(response.outputs or predictions if isinstance(predictions, dict) else predictions)
        )

    def decode(request: RawRequest, variant: ServedVariant) -> DecodedRequest:
        document = read(request.headers.get("content-type"), request.body)
        predictor = variant.loaded.predictor
        if predictor.artifact.flavor == PYTHON_FUNCTION:
            return DecodedRequest({}, answer_body, body=OpaqueBody(JSON, _written(document)))
        return DecodedRequest(mlflow.decode_document(document, predictor.schema), answer_arrays)

    return Protocol(name, decode)


def _written(document: dict[str, Any]) -> bytes:
    """The JSON of a document; not by orjson, which refuses what it reads: half a surrogate pair.

    Raises:
        InvalidRequest: it is nested too deeply.
    """
    check_depth(document)
    return json.dumps(document).encode()


VERTEX = _protocol("vertex", clouds.read_vertex, clouds.encode_vertex)
AZURE = _protocol("azure", clouds.read_azure, clouds.encode_azure)
