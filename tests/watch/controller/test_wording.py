"""The wording of the controller's most visible messages."""

from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.processes.durable_work import next_fire
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.promote.rollouts.commands import (
    RolloutRequest,
    command_rollout,
    last_rollout,
    require_controller,
)
from mlflow_deploy_plugin.promote.rollouts.rollback import rollback
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor
from mlflow_deploy_plugin.watch.retraining.trigger import request_retraining
from tests.support.rollouts import PLAN


@pytest.fixture
def deployments(tmp_path):
    """Return the deployments of a store with the endpoint `flights`, its two monitors
    and its live rollout.
    """
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    monitors = {"monitors.daily.kind": "drift", "monitors.weekly.kind": "drift"}
    store.add_endpoint("onnxserve", apply_config(new_endpoint("flights", "models:/X/1"), monitors))
    store.add_endpoint("onnxserve", new_endpoint("taxis", "models:/Y/1"))
    store.add_rollout("flights", PLAN.to_json(), "stepping")
    return Deployments(store, Settings(home=tmp_path), lambda line: None)


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (
            lambda flights: find_monitor(flights, "flihgts", None),
            "there is no endpoint 'flihgts'; did you mean 'flights'?",
        ),
        (
            lambda flights: find_monitor(flights, "flights", None),
            "endpoint 'flights' has several monitors: select one with --monitor daily | weekly",
        ),
        (
            lambda flights: find_monitor(flights, "flights", "drfit"),
            "endpoint 'flights' has no monitor 'drfit'; it has daily, weekly",
        ),
        (
            lambda flights: find_monitor(flights, "taxis", "drfit"),
            "endpoint 'taxis' has no monitor 'drfit'; onnxserve monitor add makes one",
        ),
        (
            lambda flights: require_controller(flights.store, "rollouts", patience=0),
            (
                "no controller that can reach the server is running, so the rollout was not "
                "started: start `onnxserve controller` first, or use --wait to run the rollout in "
                "this command"
            ),
        ),
        (
            lambda flights: last_rollout(flights.store, "taxis"),
            "endpoint 'taxis' has had no rollout",
        ),
        (
            lambda flights: command_rollout(flights, "flights", "resume"),
            "the rollout of 'flights' cannot be resumed: it is stepping",
        ),
        (
            lambda flights: command_rollout(flights, "taxis", "abort"),
            "endpoint 'taxis' has no live rollout",
        ),
        (
            lambda flights: request_retraining(flights, "nope"),
            "there is no endpoint 'nope'; there are flights, taxis",
        ),
        (
            lambda flights: request_retraining(flights, "flights"),
            (
                "no monitor of endpoint 'flights' specifies how to train the model: onnxserve "
                "endpoint update flights -C monitors.NAME.retrain.project=PROJECT"
            ),
        ),
        (
            lambda flights: rollback(flights, "nope"),
            "there is no endpoint 'nope'; there are flights, taxis",
        ),
        (
            lambda _: RolloutRequest(to="2", steps="0,50"),
            "--steps 0,50: steps must ascend and be between 1 and 100",
        ),
        (
            lambda _: RolloutRequest(to="2", every="5"),
            "--every '5' cannot be read; a duration like 30s, 5m, 1h, 90d or 1w is expected",
        ),
        (
            lambda _: RolloutRequest(to="2", abort_on="p99>0.5x"),
            "--abort-on: p99>0.5x: this limit requires a faster candidate; use at least 1x",
        ),
        (
            lambda _: next_fire("15 6 * * *", "Berlin", datetime(2026, 11, 22, tzinfo=UTC)),
            "time_zone 'Berlin' is not known; a name like Europe/Berlin is expected",
        ),
    ],
)
def test_the_message_of_a_refusal(deployments, cause, message):
    with pytest.raises(OnnxserveError) as refused:
        cause(deployments)
    assert str(refused.value) == message
