"""The routes of OpenAI's clients (https://platform.openai.com/docs/api-reference),
which work like `/invocations`.
"""

import json
from collections.abc import Mapping

from mlflow_deploy_plugin.core.errors import InvalidRequest
from mlflow_deploy_plugin.serve.protocols.content import JSON, check_depth, load_json_object
from mlflow_deploy_plugin.serve.protocols.invocations import EVENT_BODIES, decode_invocations
from mlflow_deploy_plugin.serve.protocols.protocol import (
    DecodedRequest,
    EncodedResponse,
    InferResponse,
    Protocol,
)
from mlflow_deploy_plugin.serve.protocols.schemas import JsonSchema, array_schema, object_schema
from mlflow_deploy_plugin.serve.variants import ServedVariant

OPENAI_ROUTES = {
    "agent/v1/responses": "/responses",
    "agent/v1/chat": "/chat/completions",
    "llm/v1/chat": "/chat/completions",
    "llm/v1/embeddings": "/embeddings",
}
"""MLflow's tasks with OpenAI's request and response bodies, and the route that OpenAI's
clients use.
"""
_TEXT_OR_LIST: JsonSchema = {"type": ["string", "array"], "items": {}}


def _openai_protocol(route: str, input_name: str, of_input: JsonSchema) -> Protocol:
    """Return the protocol of a route of OpenAI's clients, for models with the task of
    the route.
    """

    def decode_request(
        headers: Mapping[str, str],
        body: bytes,
        variant: ServedVariant,
        limit: int,
    ) -> DecodedRequest:
        """Decode a body of OpenAI's clients as a body of `/invocations`. Raises
        InvalidRequest if the model has another task, or cannot stream.
        """
        document = load_json_object(headers.get("content-type"), body)
        _check_model(variant, route, document)
        input_ = document.get("input")
        # MLflow embeds the strings in the first field, regardless of its name.
        if route == "/embeddings":
            if document.get("dimensions") is not None:
                raise InvalidRequest(
                    "the model's embeddings have a fixed size: send the request without dimensions",
                )
            check_depth(document)
            texts = [input_] if isinstance(input_, str) else input_
            body = json.dumps({"input": texts}).encode()
        # In OpenAI's API, a text is a user message; MLflow accepts only a list.
        elif isinstance(input_, str):
            check_depth(document)
            body = json.dumps(document | {"input": [{"role": "user", "content": input_}]}).encode()
        return decode_invocations(headers, body, variant, limit)._replace(encode=encode)

    def encode(variant: ServedVariant, response: InferResponse) -> EncodedResponse:
        # MLflow's transformers flavor returns a list with one response.
        if response.body.startswith(b"["):
            return EncodedResponse(response.body[1:-1])
        return EncodedResponse(response.body)

    return Protocol(
        route.removeprefix("/").replace("/", "_"),
        decode_request,
        paths=(route, f"/v1{route}", f"/endpoints/NAME{route}"),
        summary=f"A response in the form of OpenAI's {route}",
        request={JSON: object_schema({input_name: of_input})},
        response={JSON: {"type": "object"}, **EVENT_BODIES},
        may_name_endpoint=True,
        takes_pyfuncs=True,
        applies_to=lambda artifact: OPENAI_ROUTES.get(artifact.task) == route,
    )


def _check_model(
    variant: ServedVariant,
    route: str,
    document: Mapping[str, object],
) -> None:
    """Raise InvalidRequest if the model's task belongs to another route, or if the
    request asks for a stream that the model does not have.
    """
    artifact = variant.loaded.predictor.artifact
    if (own_route := OPENAI_ROUTES.get(artifact.task, "/invocations")) != route:
        task = repr(artifact.task[:60]) if artifact.task else "missing"
        raise InvalidRequest(
            f"the model's responses do not have the form of {route} (the task in its MLmodel "
            f"is {task}); send it to {own_route}",
        )
    if document.get("stream") is True and not artifact.is_streamable:
        raise InvalidRequest("the model has no predict_stream: send the request without stream")


RESPONSES = _openai_protocol("/responses", "input", _TEXT_OR_LIST)
CHAT_COMPLETIONS = _openai_protocol(
    "/chat/completions",
    "messages",
    array_schema({"type": "object"}),
)
EMBEDDINGS = _openai_protocol("/embeddings", "input", _TEXT_OR_LIST)
