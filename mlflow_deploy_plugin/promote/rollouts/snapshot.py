"""A snapshot of an endpoint: the main model, the versions that answer, and the counters
of their requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, Refused
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec, VariantSpec
from mlflow_deploy_plugin.ship.deployments.backends.targets import DeploymentState
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    CountersByVersion,
    MetricsByServer,
    ServerMetrics,
)


@dataclass(frozen=True)
class EndpointSnapshot:
    """An endpoint at one point in time.

    Attributes:
        reason: the reason why the endpoint waits or is not running.
        versions: variant → the version that all workers serve; missing if the workers
            serve different versions.
        errors: variant → the reason why a worker could not load the variant's version.
        refused: variant and version → the reason why the agent does not serve the
            version.
        unread: the reason why the counters of a server are missing; empty if all
            counters were read.
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
    """Return the only variant that answers requests. Raises InvalidConfig unless
    exactly one variant does.
    """
    answering = [
        name for name, variant in spec.variants.items() if variant.weight > 0 and not variant.shadow
    ]
    if len(answering) != 1:
        names = " and ".join(answering) or "no deployment"
        raise InvalidConfig(
            f"endpoint {spec.name!r} is answered by {names}, "
            "but exactly one deployment is expected: set it with `onnxserve endpoint traffic "
            f"{spec.name} NAME=100`"
        )
    return answering[0]


def take_snapshot(
    observed: ObservedEndpoint,
    metrics: MetricsByServer = MappingProxyType({}),
) -> EndpointSnapshot:
    """Return a snapshot of the endpoint, with the counters in `metrics`
    (`Deployments.server_metrics`).
    """
    spec = observed.endpoint.spec
    observation = observed.observation
    answering = {}
    for name in spec.variants:
        versions = {worker.loaded(spec.name, name).version for worker in observation.workers}
        version = versions.pop() if len(versions) == 1 else ""
        if version:
            answering[name] = version
    unread = (
        f"{server}: {entry.reason}"
        for server, entry in metrics.items()
        if isinstance(entry, Refused)
    )
    return EndpointSnapshot(
        variants=spec.variants,
        state=observation.state,
        reason=observation.reason or observation.registry_error,
        versions=answering,
        errors=observation.errors,
        refused={
            (row.variant, row.version): row.reason
            for row in observation.refused
            if row.endpoint == spec.name
        },
        counters={
            server: entry.by_version(spec.name)
            for server, entry in metrics.items()
            if isinstance(entry, ServerMetrics)
        },
        unread=next(unread, ""),
    )


class ServedModelChanged(InvalidConfig):
    """The endpoint no longer serves the model that was trained, but a different
    model.
    """


def served_model(observed: ObservedEndpoint) -> str:
    """Return the endpoint's model name. Raises InvalidConfig if the model is not
    registered, or unless exactly one variant answers requests.
    """
    spec = observed.endpoint.spec
    reference = parse_model_uri(spec.variants[main_variant(spec)].model)
    if not reference.is_registered:
        raise InvalidConfig(
            f"endpoint {spec.name!r} does not serve a registered model, so it cannot be retrained"
        )
    return reference.name


def served_version(observed: ObservedEndpoint) -> str:
    """Return the version that answers or, without a server, that a server would serve.

    Raises InvalidConfig unless exactly one variant answers requests, and NotFound or
    RegistryUnavailable if the version cannot be read.
    """
    spec = observed.endpoint.spec
    main = main_variant(spec)
    return take_snapshot(observed).versions.get(main) or resolve(spec.variants[main].model).version


def answering_version(deployments: Deployments, endpoint: str, model: str) -> str:
    """Return the version of `model` that answers requests; empty during a rollout or if
    the version is unknown.

    Raises ServedModelChanged if the endpoint now serves another model, NotFound if the
    endpoint does not exist, and RegistryUnavailable if the version cannot be read.
    """
    observed = deployments.get_endpoint(endpoint)
    try:
        served = served_model(observed)
    except InvalidConfig:
        return ""
    if served != model:
        raise ServedModelChanged(f"endpoint {endpoint!r} now serves {served} instead of {model}")
    try:
        return served_version(observed)
    except NotFound:  # The alias does not point to a version.
        return ""
