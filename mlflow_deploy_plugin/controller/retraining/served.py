"""What an endpoint serves now: a retraining takes minutes to days, and nobody holds still for it."""

from mlflow_deploy_plugin.controller.rollouts.start import main_variant
from mlflow_deploy_plugin.controller.snapshot import take_snapshot
from mlflow_deploy_plugin.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.errors import InvalidConfig, NotFound
from mlflow_deploy_plugin.registry import parse_model_uri, resolve


class ServedModelChanged(InvalidConfig):
    """What was trained is not what is served any more."""


def served_model(observed: ObservedEndpoint) -> str:
    """The registered model whose version answers.

    Raises:
        InvalidConfig: none does, or several deployments share the traffic.
    """
    spec = observed.endpoint.spec
    reference = parse_model_uri(spec.variants[main_variant(spec)].model)
    if not reference.is_registered:
        raise InvalidConfig(f"endpoint {spec.name!r} serves no registered model, and only versions of one are trained")
    return reference.name


def served_version(observed: ObservedEndpoint) -> str:
    """The version that answers; of a server that does not run, the one that it would serve.

    Raises:
        InvalidConfig: as `served_model`.
        NotFound / RegistryUnavailable: nobody says which.
    """
    spec = observed.endpoint.spec
    main = main_variant(spec)
    seen = take_snapshot(observed, with_numbers=False).versions.get(main)
    return seen or resolve(spec.variants[main].model).version


def answering_version(deployments: Deployments, endpoint: str, model: str) -> str:
    """The version of the model that answers now; empty while a rollout decides it, or where it cannot be told.

    Raises:
        AnotherModel: the endpoint serves another one by now.
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
