"""Whom a question goes to: a deployment by its name, or an endpoint, which chooses by its traffic."""

from dataclasses import dataclass

from mlflow_deploy_plugin.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.deployments.traffic import traffic_weights
from mlflow_deploy_plugin.errors import InvalidConfig, NotReady


@dataclass(frozen=True)
class ScoringTarget:
    """Where a question goes, and how long its answer is waited for."""

    url: str
    timeout_seconds: float


def scoring_target(deployments: Deployments, name: str | None, endpoint: str | None) -> ScoringTarget:
    """The server of the deployment, which must be the only one that answers its endpoint; or that of the endpoint.

    Raises:
        InvalidConfig: neither is said, or the deployment is not the one that would answer.
        NotFound: there is no such deployment or endpoint.
        NotReady: it does not run.
    """
    if name is not None:
        found = deployments.get(name, endpoint)
        observed = ObservedEndpoint(found.endpoint, found.observation)
        _check_answers_alone(name, observed)
    elif endpoint is not None:
        observed = deployments.get_endpoint(endpoint)
    else:
        raise InvalidConfig("say which deployment or which endpoint is asked")
    seen = observed.observation
    if not seen.url:
        raise NotReady(f"{observed.endpoint.name}: {seen.state}; {seen.reason}")
    return ScoringTarget(seen.url, observed.endpoint.spec.server.request_timeout_seconds)


def _check_answers_alone(name: str, observed: ObservedEndpoint) -> None:
    endpoint = observed.endpoint
    answering = [one for one, weight in traffic_weights(endpoint.spec).items() if weight > 0]
    if answering != [name]:
        raise InvalidConfig(
            f"{name!r} cannot be asked alone, the endpoint {endpoint.name!r} is answered by "
            f"{', '.join(answering)}: ask by --endpoint {endpoint.name}"
        )
