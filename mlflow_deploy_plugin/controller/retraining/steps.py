"""Takes a retraining one step further. Every state is written down before the next one's work begins, and every step
looks first whether its work is done already, so that it may be done again after a crash in the middle of it.

    waiting       the rows are collected and the MLflow run is made
    running       `mlflow run` trains; it outlives the controller, and the next one adopts it
    registered    the run has registered a version; the gate judges it beside what is served
    gated         by the spec's `then`: a rollout, a proposal, or nothing
    rolling_out   the rollout brings it
    promoted, proposed, left, rolled_back, failed         the end
"""

from mlflow_deploy_plugin.controller.retraining import deploy, training
from mlflow_deploy_plugin.controller.retraining.context import RetrainingContext
from mlflow_deploy_plugin.controller.retraining.served import ServedModelChanged
from mlflow_deploy_plugin.errors import InvalidConfig, NotReady, OnnxserveError
from mlflow_deploy_plugin.store.retrainings import Retraining

_WORK = {
    "waiting": training.start_training,
    "running": training.watch_training,
    "registered": deploy.judge_version,
    "gated": deploy.deploy_version,
    "rolling_out": deploy.watch_rollout,
}


def run_step(hands: RetrainingContext, one: Retraining) -> None:
    """Does what the state asks for; what it cannot do is the end of the retraining, with the reason.

    Where the endpoint's spec cannot be read, it waits; what trains already goes on, and is watched.

    Raises:
        RegistryUnavailable / StoreUnavailable / NotReady: to be tried again.
    """
    if one.state != "rolling_out" and _is_deleted(hands, one):
        training.end_training(one)
        hands.fail(one, f"endpoint {one.endpoint!r} was deleted meanwhile")
        return
    try:
        _WORK[one.state](hands, one)
    except ServedModelChanged as error:
        hands.finish(one, "left", error.message)


def one_line(error: OnnxserveError) -> str:
    return " ".join(error.message.split())


def _is_deleted(hands: RetrainingContext, one: Retraining) -> bool:
    """Also where there is a namesake by now.

    Raises:
        NotReady: nobody can tell, and nothing is under way that has to be watched.
    """
    try:
        stored = hands.deployments.store.endpoint(one.endpoint)
    except InvalidConfig as error:
        if one.state != "running" or not one.reason:
            raise NotReady(error.message) from None
        return False
    return stored is None or stored.created_at > one.created_at
