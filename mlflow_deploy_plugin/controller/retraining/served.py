"""The model and version that an endpoint serves now; both may change while a retraining takes minutes to days."""

from mlflow_deploy_plugin.controller.snapshot import main_variant, take_snapshot
from mlflow_deploy_plugin.deployments import Deployments, ObservedEndpoint
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry import parse_model_uri, resolve


class ServedModelChanged(InvalidConfig):
    """The endpoint no longer serves the model that was trained."""


def served_model(observed: ObservedEndpoint) -> str:
    """Return the registered model that answers.

    Raises:
        InvalidConfig: no registered model answers, or several deployments share the traffic.
    """
    spec = observed.endpoint.spec
    reference = parse_model_uri(spec.variants[main_variant(spec)].model)
    if not reference.is_registered:
        raise InvalidConfig(f"endpoint {spec.name!r} serves no registered model, and only versions of one are trained")
    return reference.name


def served_version(observed: ObservedEndpoint) -> str:
    """Return the version that answers. If the server does not run, return the one that it would serve.

    Raises:
        InvalidConfig: as `served_model`.
        NotFound / RegistryUnavailable: nobody says which.
    """
    spec = observed.endpoint.spec
    main = main_variant(spec)
    snapshot = take_snapshot(observed, with_counters=False).versions.get(main)
    return snapshot or resolve(spec.variants[main].model).version


def answering_version(deployments: Deployments, endpoint: str, model: str) -> str:
    """Return the version of the model that answers now; empty while a rollout decides it, or if it is unknown.

    Raises:
        ServedModelChanged: the endpoint serves another one by now.
        NotFound: there is no such endpoint.
        RegistryUnavailable: nobody says which version.
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
    except NotFound:  # the alias is held by nobody just now
        return ""
