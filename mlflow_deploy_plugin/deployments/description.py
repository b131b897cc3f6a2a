"""A deployment as the flat mapping that `mlflow deployments get` prints line by line."""

from datetime import UTC, datetime
from typing import Any

from mlflow_deploy_plugin.deployments.lifecycle import Deployment
from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.server.state import LoadedVariant, WantedVariant


def summary(deployment: Deployment) -> dict[str, Any]:
    """What `list` shows: a few of the lines of `describe`."""
    shown = describe(deployment)
    return {key: shown[key] for key in ("name", "endpoint", "state", "url", "model_uri", "model", "version", "flavor")}


def describe(deployment: Deployment) -> dict[str, Any]:
    """Everything that is known of a deployment, plain values only; what is not known is an empty text."""
    endpoint, seen = deployment.endpoint, deployment.observation
    variant = endpoint.spec.variants[deployment.name]
    wanted = seen.wanted.variants.get(deployment.name) if seen.wanted is not None else None
    loaded = {
        worker.pid: worker.endpoints.get(endpoint.name, {}).get(deployment.name, LoadedVariant())
        for worker in seen.workers
    }
    versions = sorted({one.version for one in loaded.values() if one.version})
    return {
        "name": deployment.name,
        "endpoint": endpoint.name,
        "target": endpoint.target,
        "state": seen.state,
        "reason": seen.reason,
        "url": seen.url,
        "model_uri": variant.model,
        "model": wanted.model if wanted is not None else "",
        "version": ", ".join(versions),
        **_provenance(wanted),
        "weight": variant.weight,
        "shadow": variant.shadow,
        "error": seen.errors.get(deployment.name) or seen.registry_error,
        "shipping_error": seen.shipping_error,
        "pid": seen.pid or "",
        "workers": {pid: f"{wanted.model if wanted else ''} {one.version or 'nothing'}" for pid, one in loaded.items()},
        "started": _shown(seen.started_at),
        "created": endpoint.created_at.isoformat(timespec="seconds"),
        "updated": endpoint.updated_at.isoformat(timespec="seconds"),
        "log": seen.log,
    }


def _provenance(wanted: WantedVariant | None) -> dict[str, str]:
    """Flavor, parity and where the version comes from."""
    shown = dict.fromkeys(("flavor", "stage", "parity", "run_id", "git_commit", "dataset_digest"), "")
    if wanted is None:
        return shown
    try:
        artifact = read_served_artifact(wanted.folder)
    except InvalidArtifact:
        return {**shown, **wanted.aspects}
    from_files = {
        "flavor": artifact.flavor,
        "parity": artifact.parity_state,
        "run_id": artifact.run_id,
        **{key: str(value) for key, value in artifact.provenance.items() if isinstance(value, str)},
    }
    return {**shown, **from_files, **{key: value for key, value in wanted.aspects.items() if value}}


def _shown(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds is not None else ""
