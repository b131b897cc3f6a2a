"""The end of the time for which versions may answer requests without the approvals that
their model requires.
"""

import logging
from collections.abc import Sequence
from functools import partial

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.promote.rollouts.commands import abort_rollout
from mlflow_deploy_plugin.promote.rollouts.leadership import log_errors, reaches
from mlflow_deploy_plugin.ship.deployments.config import traffic_weights
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.ship.deployments.unapproved import (
    UnapprovedAnswer,
    answers_of,
    is_promoted,
    lacking_approval,
)

_log = logging.getLogger(__name__)


def end_unapproved(deployments: Deployments, location: str, actor: str) -> None:
    """Take the traffic from the versions at this location whose time without an
    approval is over.

    An endpoint that fails is logged, and does not extend the time at the other
    endpoints.
    """
    for stored in deployments.store.endpoints():
        if stored.unapproved:
            log_errors(partial(_end_overdue, deployments, stored, location, actor))


def _end_overdue(deployments: Deployments, stored: Endpoint, location: str, actor: str) -> None:
    """Take the traffic from an endpoint's overdue versions, if the endpoint is at this
    location.
    """
    store = deployments.store
    now = store.now()
    overdue = [
        answer
        for answer in answers_of(stored)
        if answer.ends_at <= now and _lacks_approval(store, answer)
    ]
    if overdue and reaches(deployments, stored.name, location):
        _take_traffic(deployments, stored, overdue, actor)


def _lacks_approval(store: Store, answer: UnapprovedAnswer) -> bool:
    """Return True if the version is not approved, according to MLflow's server: anybody
    with the store's password may write a promotion into the audit trail.
    """
    try:
        return lacking_approval(answer.model_uri, [answer.model]) is not None
    except OnnxserveError:
        # MLflow does not answer, the version was deleted, or the policy cannot be read.
        return not is_promoted(store, answer)


def _take_traffic(
    deployments: Deployments,
    stored: Endpoint,
    overdue: Sequence[UnapprovedAnswer],
    actor: str,
) -> None:
    """Abort the live rollout or, without a rollout, take the traffic from the models of
    the overdue answers. If no other deployment could answer, only log a warning.
    """
    name = stored.name
    models = {answer.model_uri for answer in overdue}
    names = " and ".join(sorted(models))
    reason = f"the time is over for which the policy permits {names} without an approval"
    if deployments.store.rollouts(name, live=True):
        abort_rollout(deployments, name, reason, actor)
        return
    weights = traffic_weights(stored.spec)
    for variant in weights:
        if stored.spec.variants[variant].model in models:
            weights[variant] = 0
    if any(weights.values()):
        deployments.set_traffic(name, weights, reason, actor, restores=True)
    else:
        _log.warning("%s: %s, and no other deployment could answer", name, reason)
