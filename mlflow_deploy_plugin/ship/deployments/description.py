"""Deployments and endpoints as flat mappings of plain values, printed by `mlflow
deployments get` and `get-endpoint`.

Unknown values are empty strings.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime

from mlflow_deploy_plugin.core.errors import InvalidArtifact, OnnxserveError
from mlflow_deploy_plugin.core.mlmodel import FLAVOR, PYTHON_FUNCTION
from mlflow_deploy_plugin.core.registry.model_files import fetch_mlmodel
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.statedir.models import WantedVariant
from mlflow_deploy_plugin.core.store.tables import Json
from mlflow_deploy_plugin.serve.runtime.artifact import PYFUNC_PARITY
from mlflow_deploy_plugin.serve.runtime.pyfunc_artifact import read_served_artifact
from mlflow_deploy_plugin.ship.deployments.config import traffic_shares, traffic_weights
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployment, Deployments
from mlflow_deploy_plugin.ship.deployments.unapproved import answers_of

_OF_DEPLOYMENT = (
    *("name", "endpoint", "state", "url", "model_uri", "model", "version"),
    *("weight", "share", "shadow", "flavor", "unapproved"),
)
_PROVENANCE = ("flavor", "stage", "parity", "run_id", "git_commit", "dataset_digest")
_OF_ENDPOINT = ("name", "state", "reason", "url", "traffic", "shadows", "unapproved")
_IN_ENDPOINT = (
    *("model_uri", "model", "version", "stage", "flavor"),
    *("weight", "share", "shadow", "state", "reason", "error", "unapproved"),
)


def summarize(deployment: Deployment) -> Json:
    """Return the fields of a deployment that `list` prints: some of the fields of
    `describe`.
    """
    return _select(describe(deployment), _OF_DEPLOYMENT)


def _select(fields: Json, names: Iterable[str]) -> Json:
    return {name: fields[name] for name in names}


def describe(deployment: Deployment) -> Json:
    """Return all known fields of a deployment, as `onnxserve` and MLflow print them."""
    endpoint = deployment.endpoint
    observation = deployment.observation
    variant = endpoint.spec.variants[deployment.name]
    wanted = None
    if observation.wanted is not None:
        wanted = observation.wanted.variants.get(deployment.name)
    loaded = {one.pid: one.loaded(endpoint.name, deployment.name) for one in observation.workers}
    is_refused = any(
        (one.endpoint, one.variant) == (endpoint.name, deployment.name)
        for one in observation.refused
    )
    error = observation.errors.get(deployment.name) or ""
    # The agent's registry error may be about another deployment.
    if not error and (is_refused or not observation.refused):
        error = observation.registry_error
    state = observation.state
    reason = observation.reason
    # The server may run although a worker has not loaded the deployment.
    if state == "running" and not all(one.version for one in loaded.values()):
        state = "failed" if error else "starting"
        reason = error or reason or "the model is loading"
    model = wanted.model if wanted is not None else ""
    workers = {pid: f"{model} {one.version or 'nothing'}" for pid, one in loaded.items()}
    no_batch = next(filter(None, (one.no_batch for one in loaded.values())), "")
    answers: list[str] = []
    if variant.weight and not variant.shadow:
        answers = [str(one) for one in answers_of(endpoint) if one.model_uri == variant.model]
    return {
        "name": deployment.name,
        "endpoint": endpoint.name,
        "target": endpoint.target,
        "state": state,
        "reason": reason,
        "url": observation.url,
        "model_uri": variant.model,
        "model": model,
        "version": ", ".join(sorted({one.version for one in loaded.values()} - {""})),
        **_provenance(variant.model, wanted, is_running=state == "running"),
        "batch_dimension": f"none: {no_batch}" if no_batch else "",
        "weight": variant.weight,
        "share": traffic_shares(traffic_weights(endpoint.spec)).get(deployment.name, 0.0),
        "shadow": variant.shadow,
        "unapproved": next(iter(answers), ""),
        **_server_lines(deployment, error, workers),
    }


def summarize_endpoints(deployments: Deployments) -> list[Json]:
    """Return the main fields of each endpoint and the names of its deployments, by
    endpoint name.
    """
    return [
        {**_select(row, _OF_ENDPOINT), "deployments": list(row["deployments"])}
        for row in describe_endpoints(deployments)
    ]


def describe_endpoints(deployments: Deployments) -> list[Json]:
    """Return endpoint → all its known fields. An unreadable endpoint has only its name
    and the reason.
    """
    described = [describe_endpoint(observed) for observed in deployments.list_endpoints()]
    for row in deployments.store.unreadable():
        described.append(
            {
                "name": row.name,
                "target": row.target,
                "state": "unreadable",
                "reason": row.reason,
                "url": "",
                "restarts": "",
                "traffic": {},
                "shadows": [],
                "unapproved": [],
                "deployments": {},
                "workers": {},
            }
        )
    return sorted(described, key=lambda item: str(item["name"]))


def describe_endpoint(observed: ObservedEndpoint) -> Json:
    """Return all known fields of an endpoint. `deployments` has the main fields of each
    deployment.
    """
    endpoint = observed.endpoint
    observation = observed.observation
    spec = endpoint.spec
    deployments = {
        name: describe(Deployment(name, endpoint, observation)) for name in spec.variants
    }
    workers = {}
    for worker in observation.workers:
        workers[worker.pid] = {
            name: worker.loaded(endpoint.name, name).version for name in spec.variants
        }
    sticky = {}
    if spec.sticky is not None:
        sticky = spec.sticky.model_dump(exclude_none=True)
    return {
        "name": endpoint.name,
        "target": endpoint.target,
        "state": observation.state,
        "reason": observation.reason,
        "url": observation.url,
        "traffic": traffic_weights(spec),
        "shadows": [name for name, variant in spec.variants.items() if variant.shadow],
        "sticky": sticky,
        "require": spec.require or "",
        "steps": spec.serve.digest,
        "unapproved": [str(answer) for answer in answers_of(endpoint)],
        "deployments": {
            name: _select(fields, _IN_ENDPOINT) for name, fields in deployments.items()
        },
        **_server_lines(observed, observation.registry_error, workers),
    }


def _server_lines(
    observed: Deployment | ObservedEndpoint, error: str, workers: Mapping[int, object]
) -> Json:
    """Return the fields about the server. `workers` maps process ids to the loaded
    versions.
    """
    endpoint = observed.endpoint
    observation = observed.observation
    started = ""
    if observation.started_at is not None:
        moment = datetime.fromtimestamp(observation.started_at, UTC)
        started = moment.isoformat(timespec="seconds")
    restarts = "" if observation.restarts is None else observation.restarts
    return {
        "error": error,
        "shipping_error": observation.shipping_error,
        "pid": observation.pid or "",
        "workers": workers,
        "started": started,
        "restarts": restarts,
        "created": endpoint.created_at.isoformat(timespec="seconds"),
        "updated": endpoint.updated_at.isoformat(timespec="seconds"),
        "log": observation.log,
    }


def _provenance(model_uri: str, wanted: WantedVariant | None, is_running: bool) -> dict[str, str]:
    """Return the flavor, parity and origin of the served version, from the agent, local
    files or MLflow.
    """
    details = dict.fromkeys(_PROVENANCE, "")
    reported = {}
    if wanted is not None:
        reported = {key: value for key, value in wanted.aspects.items() if value}
        with suppress(InvalidArtifact):
            artifact = read_served_artifact(wanted.folder)
            details |= {"flavor": artifact.flavor, "parity": artifact.parity_state}
            details |= {"run_id": artifact.run_id, **_texts(artifact.provenance)}
    if is_running and not (details | reported)["flavor"]:
        if wanted is not None and parse_model_uri(model_uri).followed:
            model_uri = f"models:/{wanted.model}/{wanted.version}"
        try:
            mlmodel = fetch_mlmodel(resolve(model_uri).source)
        except OnnxserveError:
            return details | reported
        known = (FLAVOR, "onnx", PYTHON_FUNCTION)
        flavor = next(filter(mlmodel.flavors.__contains__, known), "")
        section = mlmodel.flavors.get(FLAVOR, {})
        parity = PYFUNC_PARITY
        if flavor != PYTHON_FUNCTION:
            parity = str(section.get("parity", {}).get("state", "no-original"))
        details |= {"flavor": flavor, "parity": parity, "run_id": mlmodel.run_id or ""}
        details |= _texts(section.get("provenance", {}))
    return details | reported


def _texts(provenance: Mapping[str, object]) -> dict[str, str]:
    return {key: value for key, value in provenance.items() if isinstance(value, str)}
