"""Triton's statistics extension of V2.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md. All workers are
summed up. What is not measured on its own is 0: decoding and encoding (`compute_input`, `compute_output`) and failures
have a count without a time, and `success.ns` is that of all requests; sizes of batches are in `/metrics`.
"""

from collections.abc import Mapping
from typing import Any

from mlflow_deploy_plugin.server.models.repository import Repository
from mlflow_deploy_plugin.server.observability.metrics import Statistics

_NANOSECONDS = 1_000_000_000


def statistics(
    repository: Repository,
    counted: Mapping[tuple[str, str, str], Statistics],
    endpoint: str | None = None,
    version: str | None = None,
) -> dict[str, Any]:
    """The document of `/stats`: each version in memory of every endpoint, of one, or one of its versions.

    Args:
        counted: what `Metrics.statistics` gives.

    Raises:
        NotFound, NotReady: see `Repository.lease`.
    """
    if version is not None:
        repository.lease(endpoint, 0.0, version)
    endpoints = repository.table.items() if endpoint is None else [repository.find(endpoint)]
    entries = []
    for name, served in endpoints:
        models = {variant.loaded.version: variant.loaded.model for variant in served.variants.values()}
        entries += [
            _entry(name, held, counted.get((name, model, held), Statistics()))
            for held, model in models.items()
            if version in (None, held)
        ]
    return {"model_stats": entries}


def _entry(name: str, version: str, counted: Statistics) -> dict[str, Any]:
    succeeded = counted.requests - counted.failures
    return {
        "name": name,
        "version": version,
        "last_inference": round(1000 * counted.last_request),
        "inference_count": counted.rows if counted.batches else succeeded,
        "execution_count": counted.batches or succeeded,
        "inference_stats": {
            "success": _duration(succeeded, counted.request_seconds),
            "fail": _duration(counted.failures),
            "queue": _duration(succeeded, counted.queue_seconds),
            "compute_input": _duration(succeeded),
            "compute_infer": _duration(succeeded, counted.compute_seconds),
            "compute_output": _duration(succeeded),
            "cache_hit": _duration(0),
            "cache_miss": _duration(0),
        },
        "response_stats": {},
        "batch_stats": [],
        "memory_usage": [],
    }


def _duration(count: int, seconds: float = 0.0) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * _NANOSECONDS)}
