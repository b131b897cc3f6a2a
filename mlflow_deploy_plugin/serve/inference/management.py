"""V2's documents about models and the server, and the commands to load and unload a
model, for REST and gRPC.

The metadata are V2's. The model repository, configuration and statistics are Triton's
extensions (https://github.com/triton-inference-server/server/tree/main/docs/protocol,
protobuf/model_config.proto). A "model" is an endpoint here. The parameter `config` of a
load is an endpoint in our spec, instead of Triton's ModelConfig. If the endpoint or
version is not served, the functions raise the errors of `Repository.select_variant`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from mlflow_deploy_plugin.core.errors import InvalidConfig, InvalidRequest, NotReady
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.mlmodel import PYTHON_FUNCTION
from mlflow_deploy_plugin.core.spec.document import load_specs, new_endpoint
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, ServerSpec
from mlflow_deploy_plugin.core.yaml_text import check_yaml
from mlflow_deploy_plugin.serve.inference.server import Server
from mlflow_deploy_plugin.serve.models.repository import Repository
from mlflow_deploy_plugin.serve.observability.metrics import Statistics
from mlflow_deploy_plugin.serve.protocols import v2
from mlflow_deploy_plugin.serve.protocols.content import json_object, json_type
from mlflow_deploy_plugin.serve.protocols.v2_tensors import datatype_of
from mlflow_deploy_plugin.serve.runtime.artifact import Input, Output
from mlflow_deploy_plugin.serve.runtime.feeds import no_batch_dimension_reason
from mlflow_deploy_plugin.serve.runtime.values import short_repr
from mlflow_deploy_plugin.serve.variants import ServedVariant

LARGEST_CONFIG_BYTES = 64 * 1024
Document = dict[str, Any]
_LONGEST_MESSAGE = 500
_INT64_DIGITS = 18
_NANOSECONDS = 1_000_000_000


def list_models(server: Server) -> Document:
    """Return the endpoints in the form of KServe's V1."""
    models = [*server.repository.table]
    if server.repository.lazy is not None:
        models = [entry["name"] for entry in server.repository.lazy.index()]
    return {"models": models}


def model_metadata(server: Server, endpoint: str, version: str | None = None) -> Document:
    variant = server.repository.select_variant(endpoint, version)
    return server.names.model_metadata(
        endpoint, server.repository.versions(endpoint), variant.described.predictor.artifact
    )


def model_ready(server: Server, endpoint: str, version: str | None = None) -> Document:
    """Return the document of a model that is ready. Otherwise raise NotReady with the
    reason.
    """
    variant = server.repository.select_variant(endpoint, version)
    reason = variant.loaded.predictor.unavailable_reason
    if reason:
        raise NotReady(reason)
    return {"name": endpoint, "ready": True}


def model_config(server: Server, endpoint: str, version: str | None = None) -> Document:
    variant = server.repository.select_variant(endpoint, version)
    return triton_config(variant, server.repository.versions(endpoint), server.spec)


def load_model(server: Server, endpoint: str, parameters: Mapping[str, object], actor: str) -> None:
    server.model_control.load(endpoint, endpoint_to_load(endpoint, parameters), actor)


def unload_model(
    server: Server, endpoint: str, parameters: Mapping[str, object], actor: str
) -> None:
    check_unload_parameters(parameters)
    server.model_control.unload(endpoint, actor)


def repository_index(repository: Repository, only_ready: bool = False) -> list[dict[str, str]]:
    """Return the index: an entry per version in memory, per endpoint without a version,
    and per unloaded endpoint; or an entry per registered model.
    """
    if repository.lazy is not None:
        index = repository.lazy.index()
        return [entry for entry in index if entry["state"] == "READY" or not only_ready]
    entries = []
    for name, served in repository.table.items():
        by_version = {
            variant.loaded.version: variant.loaded for variant in served.variants.values()
        }
        for version, loaded in by_version.items():
            reason = loaded.predictor.unavailable_reason
            if not (reason and only_ready):
                state = "UNAVAILABLE" if reason else "READY"
                entries.append({"name": name, "version": version, "state": state, "reason": reason})
        if not served.versions and not only_ready:
            entries.append(
                {
                    "name": name,
                    "state": "UNAVAILABLE",
                    "reason": repository.unavailable_reason(name),
                }
            )
    unloaded = () if only_ready else repository.unloaded
    return entries + [
        {"name": name, "state": "UNAVAILABLE", "reason": "unloaded"} for name in unloaded
    ]


def decode_index(body: bytes) -> bool:
    """Return True if the body of an index request selects only models that are ready.
    Raises InvalidRequest.
    """
    ready = _optional_object(body).get("ready")
    if not isinstance(ready, bool | None):
        raise InvalidRequest(f"ready is {short_repr(ready)}; true or false is expected")
    return bool(ready)


def decode_parameters(body: bytes) -> Mapping[str, object]:
    """Return the optional `parameters` in the optional body of a load or unload
    request. Raises InvalidRequest.
    """
    parameters = _optional_object(body).get("parameters")
    if not isinstance(parameters, dict | None):
        raise InvalidRequest(f"parameters is a JSON {json_type(parameters)}; an object is expected")
    return parameters or {}


def endpoint_to_load(name: str, parameters: Mapping[str, Any]) -> EndpointSpec | None:
    """Return the endpoint that the parameters of a load describe; None without
    parameters.

    Raises InvalidRequest for an unknown parameter or both parameters, and InvalidConfig
    for an invalid endpoint.
    """
    for key, value in parameters.items():
        if key not in ("config", "model_uri"):
            raise InvalidRequest(
                f"the parameter {key[:60]!r} of a load is not known; the parameters are config, "
                "an endpoint as in the server's spec (YAML or JSON), and model_uri"
            )
        if not isinstance(value, str):
            raise InvalidRequest(
                f"the parameter {key} is {short_repr(value)}; a string is expected"
            )
    config = parameters.get("config")
    model_uri = parameters.get("model_uri")
    if config is not None and model_uri is not None:
        raise InvalidRequest("a load may have either config or model_uri")
    try:
        if model_uri is not None:
            return new_endpoint(name, model_uri)
        if config is None:
            return None
        if len(config) > LARGEST_CONFIG_BYTES:
            raise InvalidConfig(
                f"config has {len(config)} characters; at most {LARGEST_CONFIG_BYTES} are allowed"
            )
        try:
            check_yaml(config)
            specs = load_specs(config)
        except yaml.YAMLError as error:
            raise InvalidConfig(f"config cannot be read: {one_line(error)}") from None
        except InvalidConfig as error:
            raise InvalidConfig(
                "config is an endpoint as in the server's spec, not Triton's ModelConfig: "
                f"{error.message}"
            ) from None
        if len(specs) != 1 or specs[0].name != name:
            names = ", ".join(repr(spec.name) for spec in specs[:3])
            raise InvalidConfig(f"config describes {names}; only {name[:100]!r} is expected")
        if specs[0].server != ServerSpec():
            raise InvalidConfig(
                "`server` cannot be changed by a load, because all endpoints share the running "
                "server"
            )
        # With these fields, the caller could read secrets and run code.
        fields = {"capture.sinks": specs[0].capture.sinks, "serve.steps": specs[0].serve.steps}
        if refused := [field for field, value in fields.items() if value]:
            raise InvalidConfig(
                f"`{refused[0]}` cannot be set by a load: set it in the server's spec"
            )
        return specs[0]
    except InvalidConfig as error:
        raise InvalidConfig(error.message[:_LONGEST_MESSAGE]) from None


def check_unload_parameters(parameters: Mapping[str, object]) -> None:
    """Raise InvalidRequest for parameters other than `unload_dependents`, which
    Triton's clients send.
    """
    for key in parameters.keys() - {"unload_dependents"}:
        raise InvalidRequest(
            f"the parameter {key[:60]!r} of an unload is not known; only unload_dependents is"
        )


def _optional_object(body: bytes) -> Mapping[str, object]:
    return json_object(body) if body.strip() else {}


def triton_config(variant: ServedVariant, versions: Sequence[str], server: ServerSpec) -> Document:
    """Return a version of an endpoint as Triton's ModelConfig; with batching, `dims`
    omit the batch dimension.
    """
    artifact = variant.described.predictor.artifact
    batcher = variant.loaded.batcher
    backend = "onnxruntime"
    filename = artifact.onnx_file.name
    if artifact.flavor == PYTHON_FUNCTION:
        backend = "python"
        filename = ""
    kind = "KIND_GPU" if server.is_on_nvidia else "KIND_CPU"
    max_batch_size = batcher.policy.max_batch_size if batcher else 0
    # Triton's versions are numbers, but the version of an unregistered model is not a
    # number.
    version_policy: Document = {"latest": {"num_versions": len(versions)}}
    if all(
        version.isascii() and version.isdigit() and len(version) <= _INT64_DIGITS
        for version in versions
    ):
        version_policy = {"specific": {"versions": [int(version) for version in versions]}}
    document: Document = {
        "name": variant.endpoint,
        "platform": v2.platform(artifact),
        "backend": backend,
        "version_policy": version_policy,
        "max_batch_size": max_batch_size,
        "input": _tensors(artifact.inputs, batcher is not None),
        "output": _tensors(artifact.outputs, batcher is not None),
        "instance_group": [{"name": variant.endpoint, "kind": kind, "count": server.workers}],
        "default_model_filename": filename,
    }
    if reason := no_batch_dimension_reason(artifact):
        document["parameters"] = {"batch_dimension": {"string_value": f"none: {reason}"}}
    if batcher is not None:
        document["dynamic_batching"] = {
            "preferred_batch_size": list(batcher.policy.preferred_batch_size),
            "max_queue_delay_microseconds": batcher.policy.max_queue_delay_microseconds,
            "default_queue_policy": {
                "default_timeout_microseconds": server.default_timeout_microseconds,
                "max_queue_size": batcher.policy.max_queue_size,
            },
        }
    return document


def _tensors(entries: Iterable[Input | Output], is_batched: bool) -> list[Document]:
    """Return the tensors that have a V2 datatype. `dims` must not be empty, so a scalar
    has `reshape`.
    """
    tensors = []
    for entry in entries:
        if datatype := datatype_of(entry.dtype):
            shape = entry.shape[1:] if is_batched else entry.shape
            tensor: Document = {
                "name": entry.name,
                "data_type": f"TYPE_{datatype}".replace("BYTES", "STRING"),
                "dims": list(shape) or [1],
            }
            if not shape:
                tensor["reshape"] = {"shape": []}
            tensors.append(tensor)
    return tensors


def model_statistics(
    server: Server, endpoint: str | None = None, version: str | None = None
) -> Document:
    """Return the statistics of each version in memory, summed over all workers.

    `success.ns` includes failed requests. Times that are not measured are 0.
    """
    repository = server.repository
    counted = server.metrics.statistics()
    if version is not None:
        repository.select_variant(endpoint, version)
    endpoints = repository.table.items() if endpoint is None else [repository.find(endpoint)]
    entries: list[Document] = []
    for name, served in endpoints:
        models = {
            variant.loaded.version: variant.loaded.model for variant in served.variants.values()
        }
        for loaded_version, model in models.items():
            if version not in (None, loaded_version):
                continue
            statistics = counted.get((name, model, loaded_version), Statistics())
            # Without batches, each successful request counts as one execution.
            succeeded = statistics.requests - statistics.failures
            entries.append(
                {
                    "name": name,
                    "version": loaded_version,
                    "last_inference": round(1000 * statistics.last_request),
                    "inference_count": statistics.rows if statistics.batches else succeeded,
                    "execution_count": statistics.batches or succeeded,
                    "inference_stats": {
                        "success": _duration(succeeded, statistics.request_seconds),
                        "fail": _duration(statistics.failures),
                        "queue": _duration(succeeded, statistics.queue_seconds),
                        "compute_input": _duration(succeeded),
                        "compute_infer": _duration(succeeded, statistics.compute_seconds),
                        "compute_output": _duration(succeeded),
                        "cache_hit": _duration(0),
                        "cache_miss": _duration(0),
                    },
                    "response_stats": {},
                    "batch_stats": [],
                    "memory_usage": [],
                }
            )
    return {"model_stats": entries}


def _duration(count: int, seconds: float = 0.0) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * _NANOSECONDS)}
