"""A snapshot of an endpoint: its main model, the versions that answer, and their counters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mlflow_deploy_plugin.deployments import Deployments, MetricsByServer, ObservedEndpoint, ServerMetrics
from mlflow_deploy_plugin.deployments.backends import DeploymentState
from mlflow_deploy_plugin.deployments.server_metrics import CountersByVersion
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound, Refused
from mlflow_deploy_plugin.registry import parse_model_uri, resolve
from mlflow_deploy_plugin.spec import EndpointSpec, VariantSpec


@dataclass(frozen=True)
class EndpointSnapshot:
    """An endpoint at one moment.

    Attributes:
        reason: why it is not running, or what it waits for.
        versions: variant → the version that all workers serve; a variant without exactly one is missing.
        errors: variant → why a worker could not load the version.
        refused: variant and version → why the agent refuses to serve it.
        unread: why the counters of a server are missing; empty if none are.
    """

    variants: Mapping[str, VariantSpec]
    state: DeploymentState = "running"
    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    counters: Mapping[str, CountersByVersion] = field(default_factory=dict)
    unread: str = ""


def main_variant(spec: EndpointSpec) -> str:
    """Return the one variant that answers. Raises InvalidConfig if none does, or several."""
    answering = [name for name, variant in spec.variants.items() if variant.weight > 0 and not variant.shadow]
    if len(answering) != 1:
        raise InvalidConfig(
            f"endpoint {spec.name!r} is answered by {' and '.join(answering) or 'nobody'}, and one is expected: "
            f"`onnxserve endpoint traffic {spec.name} NAME=100` says which"
        )
    return answering[0]


def take_snapshot(observed: ObservedEndpoint, metrics: MetricsByServer = MappingProxyType({})) -> EndpointSnapshot:
    """Return a snapshot of the endpoint, with the counters in `metrics` (`Deployments.server_metrics`)."""
    spec, observation = observed.endpoint.spec, observed.observation
    answering = {}
    for name in spec.variants:
        versions = {worker.loaded(spec.name, name).version for worker in observation.workers}
        if len(versions) == 1 and (version := versions.pop()):
            answering[name] = version
    unread = [f"{server}: {found.reason}" for server, found in metrics.items() if isinstance(found, Refused)]
    return EndpointSnapshot(
        variants=spec.variants,
        state=observation.state,
        reason=observation.reason or observation.registry_error,
        versions=answering,
        errors=observation.errors,
        refused={(one.variant, one.version): one.reason for one in observation.refused if one.endpoint == spec.name},
        counters={
            server: found.by_version(spec.name) for server, found in metrics.items() if isinstance(found, ServerMetrics)
        },
        unread=next(iter(unread), ""),
    )


class ServedModelChanged(InvalidConfig):
    """The endpoint no longer serves the model that was trained."""


def served_model(observed: ObservedEndpoint) -> str:
    """Return the registered model that answers. Raises InvalidConfig if there is none, or several variants answer."""
    spec = observed.endpoint.spec
    reference = parse_model_uri(spec.variants[main_variant(spec)].model)
    if not reference.is_registered:
        raise InvalidConfig(f"endpoint {spec.name!r} serves no registered model, and only versions of one are trained")
    return reference.name


def served_version(observed: ObservedEndpoint) -> str:
    """Return the version that answers. If the server does not run, return the version that it would serve.

    Raises InvalidConfig as `served_model`, and NotFound or RegistryUnavailable if the version is unknown.
    """
    spec = observed.endpoint.spec
    main = main_variant(spec)
    return take_snapshot(observed).versions.get(main) or resolve(spec.variants[main].model).version


def answering_version(deployments: Deployments, endpoint: str, model: str) -> str:
    """Return the version of the model that answers now; empty while a rollout decides it, or if it is unknown.

    Model and version may change during a retraining. Raises ServedModelChanged if the endpoint serves another model,
    NotFound if there is no such endpoint, and RegistryUnavailable if the version is unknown.
    """
    observed = deployments.get_endpoint(endpoint)
    try:
        served = served_model(observed)
    except InvalidConfig:
        return ""
    if served != model:
        raise ServedModelChanged(f"endpoint {endpoint!r} serves {served} now, and no longer {model}")
    try:
        return served_version(observed)
    except NotFound:  # no version has the alias now
        return ""
