"""The OpenAPI 3.1 document of a running server: its routes, and its current endpoints
and versions.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from urllib.parse import quote

from mlflow_deploy_plugin.core.errors import NotReady
from mlflow_deploy_plugin.core.version import __version__
from mlflow_deploy_plugin.serve.http.openapi.operations import HTML
from mlflow_deploy_plugin.serve.http.responses import has_short_errors
from mlflow_deploy_plugin.serve.http.routes import Route, list_routes
from mlflow_deploy_plugin.serve.inference.auth import scopes_for
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.protocols import examples, schemas
from mlflow_deploy_plugin.serve.protocols.content import EVENTS, JSON
from mlflow_deploy_plugin.serve.protocols.examples import Example
from mlflow_deploy_plugin.serve.protocols.protocol import Bodies, RequestBody
from mlflow_deploy_plugin.serve.protocols.schemas import STRING, JsonSchema
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact
from mlflow_deploy_plugin.serve.runtime.schemas.schema import Schema
from mlflow_deploy_plugin.serve.variants import ServedEndpoint, ServedVariant

MAX_ENDPOINTS = 20
"""The maximum number of endpoints per document; 200 endpoints would take seconds and
several megabytes.
"""
_NAME = "{endpoint}"
_KEY = "key"

_ERRORS = {
    400: (
        "the body cannot be parsed or does not fit the model; the message contains the column, the "
        "row and the value"
    ),
    401: "no valid key or certificate was sent",
    403: (
        "the key does not permit this request, a page of another site sent it, or the host name is "
        "not the server's"
    ),
    404: "the endpoint or its version does not exist",
    413: "the body is larger than the server's limit",
    415: "this route does not accept the Content-Type",
    422: "a value is outside of the training rows, and the endpoint refuses such rows",
    429: "too many requests; retry after Retry-After seconds",
    501: (
        "a package that this route needs is not installed on the server; the message names the "
        "package"
    ),
    503: "no loaded version can answer",
    504: "the response was not ready before its deadline",
}


def _reference(name: str) -> JsonSchema:
    return {"$ref": f"#/components/schemas/{name}"}


_ERROR_FORMS: JsonSchema = {
    "error_mlflow": schemas.object_schema({"error_code": STRING, "message": STRING}),
    "error_v2": schemas.object_schema({"error": STRING}),
    # A path with a version or a label may be refused before its protocol is known.
    "error_of_path": {"anyOf": [_reference("error_v2"), _reference("error_mlflow")]},
}
_RFC_3339 = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-][01][0-9]:[0-5][0-9])$"  # noqa: E501
_REQUEST_HEADERS: list[JsonSchema] = [
    {
        "name": "X-Request-Id",
        "in": "header",
        "required": False,
        "schema": STRING,
        "description": "is repeated in the response and in the logs",
    },
    {
        "name": "X-Event-Time",
        "in": "header",
        "required": False,
        # A pattern instead of `format: date-time`, because openapi-python-client
        # rejects that format in headers.
        "schema": {"type": "string", "pattern": _RFC_3339},
        "description": "the time of the event in the rows, as in RFC 3339",
    },
]
_RESPONSE_HEADERS = {
    "X-Request-Id": "the caller's id, or a new id",
    "X-Prediction-Id": "a new id that is never repeated; labels that arrive later are joined by it",
    "X-Model-Name": "the model that computed the response",
    "X-Model-Version": "the version of the model",
    "X-Model-Variant": (
        "the variant that computed the response, if the endpoint has several variants"
    ),
    "X-Guard": "the columns of the first row outside of the training rows, and the number of rows",
}


@dataclass(frozen=True)
class DescribedEndpoint:
    endpoint: str
    served: ServedEndpoint

    @cached_property
    def variant(self) -> ServedVariant:
        """The variant with most of the traffic, which is used to describe the
        endpoint.
        """
        return max(self.served.answering, key=lambda variant: variant.weight)

    @property
    def schema(self) -> Schema:
        return self.variant.described.predictor.schema

    @property
    def artifact(self) -> Artifact:
        return self.variant.described.predictor.artifact

    @cached_property
    def example(self) -> Example:
        return examples.example_of(self.variant)

    @property
    def path(self) -> str:
        return f"/endpoints/{quote(self.endpoint, safe='')}"


def describe_endpoint(server: Server, endpoint: str | None) -> DescribedEndpoint:
    name, served = server.repository.find(endpoint)
    if not served.answering:
        raise NotReady(server.repository.unavailable_reason(name))
    return DescribedEndpoint(name, served)


def document(
    server: Server,
    only: str | None = None,
    root: str = "/",
) -> JsonSchema:
    """Return the document of every route, with the schemas of every endpoint that can
    answer now.

    Routes with an endpoint's name are described for the endpoint `only`, by default for
    all endpoints. With more than `MAX_ENDPOINTS` endpoints, such routes are described
    for the default endpoint. `root` is the path of the server for its callers.
    """
    answering = {
        name: DescribedEndpoint(name, served)
        for name, served in server.repository.table.items()
        if served.answering
    }
    default = answering.get(server.repository.default_endpoint or "")
    if only is None and default is not None and len(answering) > MAX_ENDPOINTS:
        only = default.endpoint
    endpoints = [described for name, described in answering.items() if only in (None, name)]
    texts = []
    for described in endpoints:
        loaded = described.variant.loaded
        texts.append(f"{described.endpoint}: {loaded.model} version {loaded.version}")
        if described.artifact.undescribed:
            texts.append(f"{described.endpoint}: {described.artifact.undescribed}")
    if len(endpoints) < len(answering):
        texts.append(
            f"{len(answering)} endpoints are served, each described by "
            "/endpoints/NAME/openapi.json",
        )
    # A caller must send all of these credentials.
    schemes: dict[str, JsonSchema] = {}
    if server.spec.takes_keys:
        schemes[_KEY] = {
            "type": "http",
            "scheme": "bearer",
            "description": (
                "an API key, or a token of the server's issuer, with the scopes infer, read and "
                "admin"
            ),
        }
    if server.spec.ca_certs is not None:
        schemes["certificate"] = {
            "type": "mutualTLS",
            "description": "of an authority that the server trusts",
        }
    components = dict(_ERROR_FORMS)
    security = {"securitySchemes": schemes} if schemes else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "onnxserve",
            "version": __version__,
            "description": "; ".join(texts) or "no model is loaded yet",
        },
        "servers": [{"url": root}],
        "paths": _paths(server, endpoints, default, schemes, components),
        "components": {"schemas": components, **security},
    }


def _paths(
    server: Server,
    endpoints: list[DescribedEndpoint],
    default: DescribedEndpoint | None,
    schemes: Mapping[str, JsonSchema],
    components: JsonSchema,
) -> dict[str, JsonSchema]:
    """Return the operations by path and method; routes without an endpoint's name
    describe `default`.

    The schemas to which the operations refer are added to `components`.
    """
    paths: dict[str, JsonSchema] = {}
    for route in list_routes():
        if route.protocol is not None:
            route = replace(route, response=server.answering(route.protocol).response)
        needed = {}
        errors: set[int] = set()
        described_endpoints: Sequence[DescribedEndpoint | None] = [default]
        if route.need is not None and schemes:
            # A caller needs all schemes, and any of the scopes.
            security: dict[str, list[str]] = {name: [] for name in schemes}
            needed["security"] = [security]
            if _KEY in schemes:
                scopes = scopes_for(route.need)
                needed["security"] = [{**security, _KEY: [scope]} for scope in scopes]
            errors |= {401, 403}
        if _NAME in route.path:
            described_endpoints = endpoints
            errors.add(404)
        for described in described_endpoints:
            path = route.path
            if described is not None:
                if not route.applies_to(described.artifact):
                    continue
                path = path.replace(_NAME, quote(described.endpoint, safe=""))
            operation = _operation_object(route, path, described, errors, components)
            paths.setdefault(path, {})[route.method.lower()] = operation | needed
    return paths


def _with_references(part: Any, prefix: str, components: JsonSchema) -> Any:
    """Return the part of a schema with a reference instead of each schema that has a
    title; these become `components`.

    The name of a component is the prefix, then the title.
    """
    if isinstance(part, list):
        return [_with_references(entry, prefix, components) for entry in part]
    if not isinstance(part, dict):
        return part
    schema = {name: _with_references(value, prefix, components) for name, value in part.items()}
    if not isinstance(schema.get("title"), str):  # A property may have this name.
        return schema
    name = prefix + schema.pop("title").replace(" ", "_")
    components[name] = schema
    return _reference(name)


def _operation_object(
    route: Route,
    path: str,
    described: DescribedEndpoint | None,
    errors: set[int],
    components: JsonSchema,
) -> JsonSchema:
    """Return the operation of a path. `described` is the endpoint in the path, or None.

    `errors` are the statuses of errors in addition to those of the route. The
    schemas to which the operation refers are added to `components`.
    """
    named: JsonSchema = {"job": {"schema": STRING, "description": "the id of the job"}}
    if described is not None:  # the versions and labels that are served now
        for name, values in (
            ("version", described.served.versions),
            ("label", described.served.variants),
        ):
            named[name] = {"schema": {"type": "string", "enum": list(values)}}
    parameters = [
        {"name": name, "in": "path", "required": True, **named[name]}
        for name in re.findall(r"{(\w+)}", path)
    ]
    errors = {*route.errors, *errors}
    if parameters:
        errors.add(400)
    response: JsonSchema = {"description": route.summary}
    if route.response:
        response["content"] = _content(route.response, described, components)
    if route.protocol is not None:
        parameters += _REQUEST_HEADERS
        response["headers"] = {
            name: {"schema": STRING, "description": meaning}
            for name, meaning in _RESPONSE_HEADERS.items()
        }
    responses = {str(status): _error_object(path, status, route) for status in sorted(errors)}
    # Client generators name the method of an operation by its id. A dot of a name is
    # doubled: /a.b is not /a/b.
    words = re.sub(r"[/{}:]+", ".", path.replace(".", ".."))
    operation: JsonSchema = {
        "operationId": words.strip(".") or "index",
        "summary": route.summary,
        "tags": [route.tag],
        "responses": {str(route.status): response, **responses},
    }
    if route.method == "DELETE":
        operation["operationId"] += ".delete"
    if parameters:
        operation["parameters"] = parameters
    if route.request:
        content = _content(route.request, described, components)
        operation["requestBody"] = {"required": route.needs_body, "content": content}
    return operation


def _content(
    bodies: Bodies,
    described: DescribedEndpoint | None,
    components: JsonSchema,
) -> JsonSchema:
    """Return the `content` of a request or a response, and add its schemas to
    `components`. If no endpoint can answer, any body is accepted.
    """
    content: JsonSchema = {}
    for media_type, body in bodies.items():
        if media_type == EVENTS and not (described and described.artifact.is_streamable):
            continue
        if isinstance(body, dict):
            content[media_type] = {"schema": _with_references(body, "", components)}
        elif described is None:
            content[media_type] = {"schema": {}}
        else:
            name = f"{described.endpoint}.{body.name}"
            content[media_type] = {"schema": _reference(name)}
            if name not in components:  # Several paths have the same body.
                if isinstance(body, RequestBody):
                    schema = body.schema(described.schema)
                else:
                    schema = body.schema(described.artifact)
                components[name] = _with_references(schema, f"{described.endpoint}.", components)
            if isinstance(body, RequestBody):
                example = body.example(described.schema, described.example)
                if example:
                    content[media_type]["example"] = example
    return content


def _error_object(path: str, status: int, route: Route) -> JsonSchema:
    """Return the response of an error: a page if the route is a page, otherwise
    JSON in the form of the path's protocol.
    """
    if route.response == HTML and status in (404, 503):
        return {
            "description": _ERRORS[status],
            "content": {media: {"schema": body} for media, body in HTML.items()},
        }
    if status == 400 and "{" in path:
        form = "error_of_path"
    else:
        form = "error_v2" if has_short_errors(path) else "error_mlflow"
    error: JsonSchema = {
        "description": _ERRORS[status],
        "content": {JSON: {"schema": _reference(form)}},
    }
    if status == 429:
        error["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return error
