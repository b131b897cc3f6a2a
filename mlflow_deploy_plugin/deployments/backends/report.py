"""Whether a server serves what its spec says, by the account of its processes (`server/state.py`)."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from mlflow_deploy_plugin.server.state import (
    WANTED,
    LoadedVariant,
    Wanted,
    WantedEndpoint,
    WorkerState,
    read_state,
    read_workers,
)
from mlflow_deploy_plugin.spec import EndpointSpec


@dataclass(frozen=True)
class AppliedSpec:
    """What the processes of a server say of an endpoint.

    Attributes:
        is_resolved: the agent has versions for exactly what the spec says.
        pending: what is waited for; empty where everything that the spec wants has been dealt with by every worker.
        errors: variant → why a worker could not load the wanted version.
        silent: the variants with a share of the traffic that have no version in some worker.
        wanted: the versions that are to be served; None before the agent has found the first.
        workers: the accounts of the living workers.
    """

    is_resolved: bool
    pending: str
    errors: dict[str, str]
    silent: tuple[str, ...]
    wanted: WantedEndpoint | None
    workers: tuple[WorkerState, ...]


def read_applied_spec(state_dir: Path, spec: EndpointSpec) -> AppliedSpec:
    """Reads what agent and workers have written about the endpoint of `spec`."""
    wanted = read_state(state_dir / WANTED, Wanted) or Wanted()
    endpoint = wanted.endpoints.get(spec.name)
    workers = tuple(worker for worker in read_workers(state_dir) if psutil.pid_exists(worker.pid))
    if endpoint is None or not _matches_spec(spec, endpoint):
        return AppliedSpec(False, _resolving(spec, endpoint), {}, (), endpoint, workers)
    informed = [w.endpoints.get(spec.name, {}) for w in workers if w.generation == wanted.generation]
    errors = {name: variant.error for variants in informed for name, variant in variants.items() if variant.error}
    silent = tuple(
        name
        for name, variant in spec.variants.items()
        if variant.weight > 0 and any(not variants.get(name, LoadedVariant()).version for variants in informed)
    )
    count = spec.server.workers
    doing = (
        "applying the change"
        if len(workers) >= count and _is_loaded(spec.name, endpoint, workers)
        else "loading the model"
    )
    pending = "" if len(informed) >= count else f"{doing}, {len(informed)} of {count} workers have it"
    return AppliedSpec(True, pending, errors, silent, endpoint, workers)


def _matches_spec(spec: EndpointSpec, endpoint: WantedEndpoint) -> bool:
    wanted = {name: (v.model_uri, v.weight, v.shadow) for name, v in endpoint.variants.items()}
    said = {name: (v.model, v.weight, v.shadow) for name, v in spec.variants.items()}
    return wanted == said and (endpoint.capture, endpoint.sticky) == (spec.capture, spec.sticky)


def _is_loaded(served_as: str, endpoint: WantedEndpoint, workers: Iterable[WorkerState]) -> bool:
    """Whether no worker lacks a version, so that only the traffic and its like are still to change."""
    return all(
        worker.endpoints.get(served_as, {}).get(name, LoadedVariant()).version == variant.version
        for worker in workers
        for name, variant in endpoint.variants.items()
    )


def _resolving(spec: EndpointSpec, endpoint: WantedEndpoint | None) -> str:
    known = {variant.model_uri for variant in endpoint.variants.values()} if endpoint is not None else set()
    new = sorted({variant.model for variant in spec.variants.values()} - known)
    return f"fetching {', '.join(new)}" if new else "applying the changed spec"
