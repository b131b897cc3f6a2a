"""The routes of the clouds: Vertex AI names its own, Azure ML asks `/score`; SageMaker's are MLflow's."""

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.dataplane import InferResponse
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.predictions import Answer, Protocol, Question, infer
from mlflow_deploy_plugin.server.http.tables import invocations
from mlflow_deploy_plugin.server.protocols import clouds
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.server.repository import ServedVariant


def vertex_predict(server: Server, request: RawRequest) -> RawResponse:
    """`AIP_PREDICT_ROUTE`. What is not JSON came by `rawPredict`: it is answered as at `/invocations`."""
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != JSON:
        return invocations(server, request)
    return infer(server, request, VERTEX)


def _read_vertex(request: RawRequest, variant: ServedVariant) -> Question:
    schema = variant.loaded.predictor.schema
    return Question(clouds.decode_vertex(request.headers.get("content-type"), request.body, schema), _answer_vertex)


def _answer_vertex(variant: ServedVariant, response: InferResponse) -> Answer:
    return Answer(clouds.encode_vertex(variant.loaded.predictor.prediction(response.outputs)))


def _read_azure(request: RawRequest, variant: ServedVariant) -> Question:
    schema = variant.loaded.predictor.schema
    return Question(clouds.decode_azure(request.headers.get("content-type"), request.body, schema), _answer_azure)


def _answer_azure(variant: ServedVariant, response: InferResponse) -> Answer:
    return Answer(clouds.encode_azure(variant.loaded.predictor.prediction(response.outputs)))


VERTEX = Protocol("vertex", _read_vertex)
AZURE = Protocol("azure", _read_azure)
