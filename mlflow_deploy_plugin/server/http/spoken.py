"""The protocols that are spoken over HTTP: how each module of `server/protocols` meets a request and its answer."""

from collections.abc import Callable

from mlflow_deploy_plugin.runtime import PYTHON_FUNCTION, Feeds, OpaqueBody, Schema
from mlflow_deploy_plugin.server.http.messages import RawRequest
from mlflow_deploy_plugin.server.http.pipeline import DecodedRequest, EncodedResponse, Protocol
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols import mlflow, predict, v2
from mlflow_deploy_plugin.server.protocols.content import JSON


def _plain(
    name: str,
    decode: Callable[[str | None, bytes, Schema], Feeds],
    encode: Callable[[ServedVariant, InferResponse], bytes],
) -> Protocol:
    """A protocol whose answer has the same form whatever the request says."""

    def answer_in_json(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(encode(variant, response))

    def read(request: RawRequest, variant: ServedVariant) -> DecodedRequest:
        feeds = decode(request.headers.get("content-type"), request.body, variant.loaded.predictor.schema)
        return DecodedRequest(feeds, answer_in_json)

    return Protocol(name, read)


def _encode_predict(variant: ServedVariant, response: InferResponse) -> bytes:
    predictor = variant.loaded.predictor
    has_rows = predictor.schema.has_rows
    return predict.encode(predictor.artifact, response.model, response.version, response.outputs, has_rows)


def _encode_batch(variant: ServedVariant, response: InferResponse) -> bytes:
    predictor = variant.loaded.predictor
    has_rows = predictor.schema.has_rows
    return predict.encode_batch(predictor.artifact, response.model, response.version, response.outputs, has_rows)


def _read_v2(request: RawRequest, variant: ServedVariant) -> DecodedRequest:
    predictor = variant.loaded.predictor
    question = v2.decode(request.headers, request.body, predictor.artifact, predictor.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        body, binary_headers = v2.encode(question, variant.endpoint, response.id, response.version, response.outputs)
        return EncodedResponse(body, v2.OCTETS if binary_headers else JSON, binary_headers)

    return DecodedRequest(question.feeds, encode, question.id, parameters=question.parameters)


def _read_invocations(request: RawRequest, variant: ServedVariant) -> DecodedRequest:
    """A pyfunc reads the body itself, with MLflow's own functions: objects, dates and params have no form as arrays."""
    predictor = variant.loaded.predictor
    content_type = request.headers.get("content-type")
    if predictor.artifact.flavor == PYTHON_FUNCTION:
        return DecodedRequest({}, _encode_body, body=OpaqueBody(content_type, request.body))
    feeds = mlflow.decode(content_type, request.body, predictor.schema)
    if not predictor.artifact.has_signature and mlflow.is_table(content_type, request.body):
        return DecodedRequest(feeds, _encode_table)
    return DecodedRequest(feeds, _encode_mlflow)


def _encode_mlflow(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    return EncodedResponse(mlflow.encode(variant.loaded.predictor.prediction(response.outputs)))


def _encode_table(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    return EncodedResponse(mlflow.encode(variant.loaded.predictor.prediction(response.outputs, of_table=True)))


def _encode_body(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
    return EncodedResponse(response.body)


INVOCATIONS = Protocol("invocations", _read_invocations)
PREDICT = _plain("predict", predict.decode, _encode_predict)
PREDICT_BATCH = _plain("predict_batch", predict.decode_batch, _encode_batch)
V2 = Protocol("v2", _read_v2)
