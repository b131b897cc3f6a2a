"""The routes of the clouds: Vertex AI names its own, Azure ML asks `/score`; SageMaker's are MLflow's."""

from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.dataplane import InferResponse
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.predictions import infer
from mlflow_deploy_plugin.server.http.spoken import plain
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


def _encode_vertex(variant: ServedVariant, response: InferResponse) -> bytes:
    return clouds.encode_vertex(variant.loaded.predictor.prediction(response.outputs))


def _encode_azure(variant: ServedVariant, response: InferResponse) -> bytes:
    return clouds.encode_azure(variant.loaded.predictor.prediction(response.outputs))


VERTEX = plain("vertex", clouds.decode_vertex, _encode_vertex)
AZURE = plain("azure", clouds.decode_azure, _encode_azure)
