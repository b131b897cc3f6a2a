"""The OpenAPI 3.1 document of a running server: its routes, for the endpoints and versions that it holds now."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mlflow_deploy_plugin.errors import NotReady
from mlflow_deploy_plugin.server.assembly import Server
from mlflow_deploy_plugin.server.http.messages import error_response
from mlflow_deploy_plugin.server.http.openapi import examples, schemas
from mlflow_deploy_plugin.server.http.openapi.operations import Bodies, Operation
from mlflow_deploy_plugin.server.http.openapi.schemas import JsonSchema
from mlflow_deploy_plugin.server.models.variants import ServedEndpoint, ServedVariant
from mlflow_deploy_plugin.server.protocols.content import JSON
from mlflow_deploy_plugin.version import __version__

DocumentedRoute = tuple[str, str, Operation]
"""A path template of `http/routes.py`, as `/v2/models/NAME[/versions/V]/infer`, its method and its document."""

_PARAMETERS = {"V": "version", "L": "label"}
MOST_ENDPOINTS = 20
"""How many endpoints one document describes; 200 would take megabytes, and seconds."""
_OPTIONAL = re.compile(r"\[([^\]]*)\]")

_REFUSALS = {
    400: "the body cannot be read, or does not fit the model; the message names the column, the row and the value",
    403: "a web page of elsewhere asks, or a name that is not known to be the server's",
    404: "there is no such endpoint, or no such version of it",
    413: "the body is larger than the server's limit",
    415: "the Content-Type is not one that this route takes",
    429: "too many requests; ask again after Retry-After seconds",
    501: "a package that this needs is not installed where the server runs; the message says which",
    503: "no version is loaded that could answer",
    504: "the answer was not ready before its deadline",
}
_ASKED_HEADERS = {
    "X-Request-Id": ({"type": "string"}, "comes back in the answer and in the logs"),
    "X-Event-Time": ({"type": "string", "format": "date-time"}, "when what the rows describe happened"),
}
_TOLD_HEADERS = {
    "X-Request-Id": "the caller's, or a new one",
    "X-Prediction-Id": "made here, never repeats; labels that arrive later are joined on it",
    "X-Model-Name": "the model that answered",
    "X-Model-Version": "its version",
    "X-Model-Variant": "the endpoint's variant that answered, where it has several",
}


@dataclass(frozen=True)
class DescribedEndpoint:
    """An endpoint as it is described: by the version that gets most of its traffic."""

    endpoint: str
    versions: tuple[str, ...]
    labels: tuple[str, ...]
    variant: ServedVariant


def describe_endpoint(server: Server, endpoint: str | None) -> DescribedEndpoint:
    """The endpoint (None: the default one).

    Raises:
        NotReady, NotFound: as `Repository.lease`.
    """
    name = server.dataplane.select_variant(endpoint).endpoint
    served = server.repository.table.get(name)
    if served is None or not served.answering:
        raise NotReady("no model is loaded yet; ask again in a moment")
    return _subject(name, served)


def document(server: Server, routes: Iterable[DocumentedRoute], only: str | None = None) -> dict[str, Any]:
    """Every route, with the schemas of every endpoint that can answer now.

    Plain routes are described for the default endpoint, those that name an endpoint for each, or for `only` this one.
    Where there are more than `MOST_ENDPOINTS`, they are described one by one, and here the default one alone.
    """
    default = _default(server)
    table = server.repository.table.items()
    answering = [_subject(name, served) for name, served in table if served.answering]
    if only is None and default is not None and len(answering) > MOST_ENDPOINTS:
        only = default.endpoint
    subjects = [subject for subject in answering if only in (None, subject.endpoint)]
    paths: dict[str, dict[str, Any]] = {}
    for template, method, operation in routes:
        for path, subject in _paths(template, subjects, default):
            if subject is None or operation.applies_to(subject.variant.loaded.predictor.artifact):
                paths.setdefault(path, {})[method.lower()] = _operation_object(operation, path, subject)
    components: dict[str, JsonSchema] = {"error": _error_schema("/"), "error_v2": _error_schema("/v2")}
    for subject in [*subjects, *([default] if default else [])]:
        components |= {f"{subject.endpoint}.{kind}": make(subject) for kind, make in _SCHEMAS.items()}
    return {
        "openapi": "3.1.0",
        "info": {"title": "onnxserve", "version": __version__, "description": _about(subjects, len(answering))},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components},
    }


_SCHEMAS: Mapping[str, Callable[[DescribedEndpoint], JsonSchema]] = {
    "invocations": lambda subject: schemas.invocations_schema(subject.variant.loaded.predictor.schema),
    "predict": lambda subject: schemas.predict_schema(subject.variant.loaded.predictor.schema),
    "batch": lambda subject: schemas.batch_schema(subject.variant.loaded.predictor.schema),
    "azure": lambda subject: schemas.azure_schema(subject.variant.loaded.predictor.schema),
    "tfserving": lambda subject: schemas.tfserving_schema(subject.variant.loaded.predictor.schema),
    "v2": lambda subject: schemas.v2_request_schema(subject.variant.loaded.predictor.schema),
    "csv": lambda subject: {"type": "string", "description": "a header with the columns' names, then the rows"},
    "invocations_answer": lambda subject: schemas.invocations_answer(subject.variant.loaded.predictor.artifact),
    "predict_answer": lambda subject: schemas.predict_answer(subject.variant.loaded.predictor.artifact),
    "batch_answer": lambda subject: schemas.batch_answer(subject.variant.loaded.predictor.artifact),
    "v2_answer": lambda subject: schemas.v2_response_schema(subject.variant.loaded.predictor.artifact),
}


def _subject(name: str, served: ServedEndpoint) -> DescribedEndpoint:
    most = max(served.answering, key=lambda variant: variant.weight)
    return DescribedEndpoint(name, served.versions, tuple(served.variants), most)


def _default(server: Server) -> DescribedEndpoint | None:
    try:
        return describe_endpoint(server, None)
    except NotReady:
        return None


def _paths(
    shown: str, subjects: list[DescribedEndpoint], default: DescribedEndpoint | None
) -> Iterator[tuple[str, DescribedEndpoint | None]]:
    """A path of the tables as the document has it: `NAME` for each endpoint, what is in brackets with and without."""
    optional = _OPTIONAL.search(shown)
    for part in ("", *(optional[1].split("|") if optional else ())):
        form = _OPTIONAL.sub(part, shown)
        segments = form.replace(":", "/").split("/")
        for letter, name in _PARAMETERS.items():
            form = re.sub(rf"(?<=/){letter}(?=[/:]|$)", f"{{{name}}}", form)
        if "NAME" not in segments:
            yield form, default
            continue
        for subject in subjects:
            yield form.replace("NAME", quote(subject.endpoint, safe=""), 1), subject


def _operation_object(operation: Operation, path: str, subject: DescribedEndpoint | None) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": _known(name, subject)}}
        for name in re.findall(r"\{(\w+)\}", path)
        if subject is not None
    ]
    if operation.is_prediction:
        parameters += [
            {"name": name, "in": "header", "required": False, "schema": schema, "description": meaning}
            for name, (schema, meaning) in _ASKED_HEADERS.items()
        ]
    named = [*([404] if _names_endpoint(path, subject) else []), *([400] if "{" in path else [])]
    refusals = sorted({*operation.errors, *named})
    answer: dict[str, Any] = {"description": operation.summary}
    if operation.response:
        answer["content"] = _content(operation.response, subject)
    if operation.is_prediction:
        answer["headers"] = {
            name: {"schema": {"type": "string"}, "description": said} for name, said in _TOLD_HEADERS.items()
        }
    described: dict[str, Any] = {
        "summary": operation.summary,
        "tags": [operation.tag],
        "responses": {str(operation.status): answer, **{str(status): _refusal(path, status) for status in refusals}},
    }
    if parameters:
        described["parameters"] = parameters
    if operation.request:
        described["requestBody"] = {
            "required": operation.needs_body,
            "content": _content(operation.request, subject),
        }
    return described


def _known(parameter: str, subject: DescribedEndpoint) -> list[str]:
    """The values of a path's parameter."""
    return list(subject.versions if parameter == "version" else subject.labels)


def _names_endpoint(path: str, subject: DescribedEndpoint | None) -> bool:
    return subject is not None and quote(subject.endpoint, safe="") in path.replace(":", "/").split("/")


def _content(bodies: Bodies, subject: DescribedEndpoint | None) -> dict[str, Any]:
    """The `content` of a body or an answer; without an endpoint that answers, anything."""
    content: dict[str, Any] = {}
    for media_type, said in bodies.items():
        if not isinstance(said, str):
            content[media_type] = {"schema": said}
            continue
        content[media_type] = {"schema": {"$ref": f"#/components/schemas/{subject.endpoint}.{said}"} if subject else {}}
        if subject and (example := _example(said, subject)):
            content[media_type]["example"] = example
    return content


def _example(kind: str, subject: DescribedEndpoint) -> Any:
    """The example of a body, empty where there is none."""
    loaded = subject.variant.loaded
    schema, example = loaded.predictor.schema, examples.example_of(loaded)
    makers: dict[str, Callable[[], Any]] = {
        "invocations": lambda: examples.invocations_example(schema, example),
        "predict": lambda: examples.predict_example(schema, example),
        "batch": lambda: examples.batch_example(schema, example),
        "azure": lambda: examples.azure_example(schema, example),
        "tfserving": lambda: examples.batch_example(schema, example),
        "v2": lambda: examples.v2_example(schema, example),
        "csv": lambda: examples.csv_example(example) if schema.columns else "",
    }
    return makers[kind]() if kind in makers else None


def _refusal(path: str, status: int) -> dict[str, Any]:
    # a path that cannot be read is nobody's: it is refused in MLflow's form
    kinds = dict.fromkeys([_error_kind(path), *(["error"] if status == 400 and "{" in path else [])])
    refs = [{"$ref": f"#/components/schemas/{kind}"} for kind in kinds]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    refused: dict[str, Any] = {"description": _REFUSALS[status], "content": {JSON: {"schema": schema}}}
    if status == 429:
        refused["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return refused


def _error_kind(path: str) -> str:
    return "error" if _error_fields(path) == _error_fields("/") else "error_v2"


def _error_fields(path: str) -> list[str]:
    """The fields of an error for this path, read off one."""
    return list(json.loads(error_response(path, 400, "", "").body))


def _error_schema(path: str) -> JsonSchema:
    fields = _error_fields(path)
    return {"type": "object", "required": fields, "properties": {name: {"type": "string"} for name in fields}}


def _about(subjects: list[DescribedEndpoint], answering: int) -> str:
    """The endpoints that are described in a sentence each, and where the others are."""
    lines = [
        f"{subject.endpoint}: {subject.variant.loaded.model} version {subject.variant.loaded.version}"
        for subject in subjects
    ]
    if len(subjects) < answering:
        lines.append(f"{answering} endpoints are served, each described by /endpoints/NAME/openapi.json")
    return "; ".join(lines) or "no model is loaded yet"
