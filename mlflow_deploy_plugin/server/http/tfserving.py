"""TensorFlow Serving's routes, `/v1/models/NAME[/versions/V|/labels/L]…`.

A label is the name of a variant of the endpoint, or the alias that a variant follows.
"""

from mlflow_deploy_plugin.errors import InvalidRequest, NotFound
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import RawRequest, RawResponse
from mlflow_deploy_plugin.server.http.pipeline import DecodedRequest, EncodedResponse, Protocol, infer
from mlflow_deploy_plugin.server.inference.dataplane import InferResponse
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.protocols import tfserving


def predict(server: Server, request: RawRequest, endpoint: str, version: str | None, label: str | None) -> RawResponse:
    """`POST …:predict`. The content type does not matter: TensorFlow's own examples send curl's default."""
    return infer(server, request, PREDICT, endpoint, _version(server, endpoint, version, label))


def no_such_method(
    server: Server, request: RawRequest, endpoint: str, version: str | None, label: str | None, method: str
) -> RawResponse:
    raise InvalidRequest(f":{method} takes tf.Example features, which no model here has; use :predict")


def status(server: Server, request: RawRequest, endpoint: str, version: str | None, label: str | None) -> RawResponse:
    """`GET …`: the version that is named, or all that are loaded."""
    chosen = _version(server, endpoint, version, label)
    if chosen is None:
        return RawResponse(200, tfserving.status(server.repository.versions(endpoint)))
    server.dataplane.select_variant(endpoint, chosen)
    return RawResponse(200, tfserving.status([chosen]))


def metadata(server: Server, request: RawRequest, endpoint: str, version: str | None, label: str | None) -> RawResponse:
    """`GET …/metadata`."""
    loaded = server.dataplane.select_variant(endpoint, _version(server, endpoint, version, label)).loaded
    predictor = loaded.predictor
    return RawResponse(200, tfserving.metadata(endpoint, loaded.version, predictor.artifact, predictor.schema))


def _version(server: Server, endpoint: str, version: str | None, label: str | None) -> str | None:
    """The version that a path names; None: it names none.

    Raises:
        NotFound: no variant of the endpoint has this label, or NotReady: see `Repository.lease`.
    """
    if label is None:
        return version
    server.repository.versions(endpoint)
    variants = server.repository.table[endpoint].variants
    for name, variant in variants.items():
        if label in (name, variant.aspects.get("alias")):
            return variant.loaded.version
    raise NotFound(f"endpoint {endpoint!r} has no label {label[:100]!r}; it has {', '.join(variants)}")


def _read(request: RawRequest, variant: ServedVariant) -> DecodedRequest:
    question = tfserving.decode(request.body, variant.loaded.predictor.schema)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        return EncodedResponse(tfserving.encode(question, variant.loaded.predictor.artifact, response.outputs))

    return DecodedRequest(question.feeds, encode)


PREDICT = Protocol("tfserving", _read)
