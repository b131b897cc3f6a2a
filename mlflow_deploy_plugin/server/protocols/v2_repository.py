"""Triton's model repository extension of V2: what stands in an index, and what a load or an unload asks for.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md. A "model" is an
endpoint here. Where Triton takes the parameter `config`, its ModelConfig, we take an endpoint as in our spec.
"""

from collections.abc import Mapping
from typing import Any

import yaml

from mlflow_deploy_plugin.errors import InvalidConfig, InvalidRequest
from mlflow_deploy_plugin.runtime import check_yaml, short_repr
from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.protocols.content import json_type, load_json
from mlflow_deploy_plugin.spec import EndpointSpec, ServerSpec, load_specs, new_endpoint

LARGEST_CONFIG_BYTES = 64 * 1024
_LONGEST_MESSAGE = 500


def index(repository: Repository, only_ready: bool = False) -> list[dict[str, str]]:
    """The versions in memory, the endpoints that have none, and those that a command has unloaded.

    What cannot answer just now says why.
    """
    entries: list[dict[str, str]] = []
    for name, served in repository.table.items():
        for version, absence in served.absences.items():
            if not (absence and only_ready):
                state = "UNAVAILABLE" if absence else "READY"
                entries.append({"name": name, "version": version, "state": state, "reason": absence})
        if not served.versions and not only_ready:
            entries.append({"name": name, "state": "UNAVAILABLE", "reason": repository.why_silent(name)})
    unloaded = () if only_ready else repository.unloaded
    return entries + [{"name": name, "state": "UNAVAILABLE", "reason": "unloaded"} for name in unloaded]


def decode_index(body: bytes) -> bool:
    """Whether the body of an index request asks for nothing but what is ready.

    Raises:
        InvalidRequest: it is no index request.
    """
    ready = _object(body).get("ready")
    if not isinstance(ready, bool | None):
        raise InvalidRequest(f"ready is {short_repr(ready)}; true or false is expected")
    return bool(ready)


def decode_parameters(body: bytes) -> Mapping[str, Any]:
    """The `parameters` in the body of a load or unload request; both may be missing.

    Raises:
        InvalidRequest: it is no such request.
    """
    parameters = _object(body).get("parameters")
    if not isinstance(parameters, dict | None):
        raise InvalidRequest(f"parameters is a JSON {json_type(parameters)}; an object is expected")
    return parameters or {}


def added_endpoint(name: str, parameters: Mapping[str, Any]) -> EndpointSpec | None:
    """What the parameters of a load say that the endpoint is; None: nothing, it is one that the server knows.

    Raises:
        InvalidRequest: a parameter that is not understood, or both that are.
        InvalidConfig: they describe no endpoint of this name.
    """
    for key, value in parameters.items():
        if key not in ("config", "model_uri"):
            raise InvalidRequest(
                f"the parameter {key[:60]!r} of a load is not understood; known are config, an endpoint as in the "
                "server's spec (YAML or JSON), and model_uri"
            )
        if not isinstance(value, str):
            raise InvalidRequest(f"the parameter {key} is {short_repr(value)}; a string is expected")
    config, model_uri = parameters.get("config"), parameters.get("model_uri")
    if config is not None and model_uri is not None:
        raise InvalidRequest("a load takes either config or model_uri")
    try:
        if model_uri is not None:
            return new_endpoint(name, model_uri)
        return None if config is None else _endpoint(name, config)
    except InvalidConfig as error:
        raise InvalidConfig(error.message[:_LONGEST_MESSAGE]) from None


def check_unload(parameters: Mapping[str, Any]) -> None:
    """`unload_dependents` is taken, since Triton's clients always send it: no endpoint depends on another here.

    Raises:
        InvalidRequest: another parameter.
    """
    for key in parameters.keys() - {"unload_dependents"}:
        raise InvalidRequest(f"the parameter {key[:60]!r} of an unload is not understood; known is unload_dependents")


def _endpoint(name: str, config: str) -> EndpointSpec:
    if len(config) > LARGEST_CONFIG_BYTES:
        raise InvalidConfig(f"config has {len(config)} characters; at most {LARGEST_CONFIG_BYTES} are taken")
    try:
        check_yaml(config, takes_aliases=False)
    except yaml.YAMLError as error:
        raise InvalidConfig(f"config cannot be read: {' '.join(str(error).split())}") from None
    specs = load_specs(config)
    if len(specs) != 1 or specs[0].name != name:
        names = ", ".join(repr(spec.name) for spec in specs[:3])
        raise InvalidConfig(f"config describes {names}; {name[:100]!r} is expected, and nothing else")
    if specs[0].server != ServerSpec():
        raise InvalidConfig("`server` cannot be changed by a load: all endpoints share the server that runs")
    return specs[0]


def _object(body: bytes) -> Mapping[str, Any]:
    document = load_json(body) if body.strip() else {}
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body is a JSON {json_type(document)}; an object is expected")
    return document
