"""The alarms that start a retraining, and the alarms that do not."""

from dataclasses import replace
from datetime import timedelta

import pytest

from mlflow_deploy_plugin.core.errors import AlreadyExists, InvalidConfig, NotFound
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import utc_now
from mlflow_deploy_plugin.core.store.tables import RetrainingFigures
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.retraining.trigger import RetrainingSchedule, request_retraining
from tests.support.inference_log import ENDPOINT, MODEL
from tests.support.refusals import mentions, refused
from tests.support.retraining import DAY

TOMORROW = Window(DAY.start + timedelta(days=1), DAY.end + timedelta(days=1))


def ended(world):
    """End the live retraining as the steps do after a run."""
    begun = replace(world.latest(), run_id="a run", figures=RetrainingFigures(attempt=1))
    assert world.retrainings.update(begun)
    world.context.fail(world.latest(), "the test ends it")


def refusals(world):
    return [
        event.why
        for event in world.deployments.store.events(ENDPOINT)
        if event.action == "retrain.refused"
    ]


def test_alarm_starts_a_retraining(world):
    begun = world.retrain_on_result(world.spec(mode="incremental"))
    assert (begun.endpoint, begun.model, begun.state) == (ENDPOINT, MODEL, "waiting")
    assert begun.spec["mode"] == "incremental"
    assert begun.cause["report"] == "http://mlflow/report"
    event = next(world.deployments.store.events(ENDPOINT, newest_first=True))
    assert event.action == "retrain.start"
    assert mentions(event.why, "monitor accuracy", str(DAY), "violated", "accuracy is 0.5")


def test_result_without_an_alarm_starts_none(world):
    for state in ("kept", "cannot tell"):
        assert world.retrain_on_result(state=state) is None
    without = world.spec().model_copy(update={"retrain": None})
    assert world.retrain_on_result(without) is None
    assert refusals(world) == []


def test_repeated_result_starts_only_one_retraining(world):
    first = world.retrain_on_result(world.spec(cooldown="1s"))
    ended(world)
    again = world.retrain_on_result(world.spec(cooldown="1s"))
    assert again == world.latest()
    assert again.id == first.id


def test_model_has_one_live_retraining(world):
    world.retrain_on_result(world.spec(cooldown="1s"))
    world.ahead = timedelta(days=2)
    assert world.retrain_on_result(window=TOMORROW) is None
    assert refusals(world) == [f"model {MODEL} is already being trained: retraining 1 is waiting"]


def test_cooldown_is_recorded_once(world):
    world.retrain_on_result()
    ended(world)
    for _ in range(2):
        assert world.retrain_on_result(window=TOMORROW) is None
    assert len(refusals(world)) == 1
    assert refusals(world)[0].startswith(f"model {MODEL} cools down until")
    world.ahead = timedelta(days=1, seconds=1)
    assert world.retrain_on_result(window=TOMORROW) is not None


def test_budget_of_runs_is_limited(world):
    spec = world.spec(max_runs=1)
    world.retrain_on_result(spec)
    ended(world)
    world.ahead = timedelta(days=29)
    assert world.retrain_on_result(spec, window=TOMORROW) is None
    assert mentions(refusals(world)[0], "1 times", "30 days", "max_runs is 1")
    world.ahead = timedelta(days=31)
    assert world.retrain_on_result(spec, window=TOMORROW) is not None


def test_early_failure_uses_no_budget(world):
    spec = world.spec(max_runs=1)
    world.retrain_on_result(spec)
    assert world.take().state == "failed"  # No rows were captured.
    assert world.retrain_on_result(spec, window=TOMORROW) is None
    assert refusals(world)[0].startswith(f"model {MODEL} cools down until")
    world.ahead = timedelta(days=1, seconds=1)
    assert world.retrain_on_result(spec, window=TOMORROW) is not None


def test_alarm_with_a_missing_project_alerts_once(world):
    spec = world.spec()
    (world.project / "MLproject").rename(world.project / "gone")
    for _ in range(2):
        assert world.retrain_on_result(spec) is None
    (refusal,) = refusals(world)
    assert mentions(refusal, "cannot be trained", f"{world.project} has no MLproject")
    (alert,) = Alerts(world.deployments.store).recent()
    assert alert.detail["lines"] == [f"{ENDPOINT}: {refusal}"]
    assert world.retrainings.find() == []


def test_each_broken_schedule_is_recorded_once(world):
    world.monitor("accuracy", schedule="0 3 * * *")
    world.monitor("fairness", schedule="0 4 * * *", project="/nowhere")
    (world.project / "MLproject").rename(world.project / "gone")
    now = utc_now() + timedelta(days=3)
    for _ in range(2):
        # a new controller in the second round
        schedule = RetrainingSchedule(world.deployments, "controller")
        schedule.request_due(now)
        schedule.request_due(now)
    assert len(refusals(world)) == 2


def test_manual_request_ignores_cooldown_and_budget(world):
    world.monitor(max_runs=1)
    world.retrain_on_result(world.spec(max_runs=1))
    ended(world)
    retraining = request_retraining(
        world.deployments, ENDPOINT, mode="incremental", why="new carrier", actor="ada"
    )
    assert retraining.state == "waiting"
    assert retraining.spec["mode"] == "incremental"
    assert retraining.spec["base_version"] == "1"
    assert mentions(retraining.cause["why"], "ada", "new carrier")


def test_impossible_retraining_request_is_refused(world):
    with refused(NotFound, "no endpoint"):
        request_retraining(world.deployments, "elsewhere")
    with refused(InvalidConfig, "no monitor", "'flights'"):
        request_retraining(world.deployments, ENDPOINT)
    world.monitor()
    world.monitor("fairness")
    with refused(InvalidConfig, "--monitor", "accuracy, fairness"):
        request_retraining(world.deployments, ENDPOINT)
    with refused(NotFound, "'speed'", "accuracy, fairness"):
        request_retraining(world.deployments, ENDPOINT, "speed")


def test_schedule_requests_once_per_time(world):
    world.monitor(schedule="0 3 * * *")
    now = utc_now()
    schedule = RetrainingSchedule(world.deployments, "controller")
    schedule.request_due(now)
    assert world.retrainings.find() == []
    schedule.request_due(now + timedelta(days=3))
    assert mentions(world.latest().cause["why"], "0 3 * * *", "accuracy")
    ended(world)
    schedule.request_due(now)
    assert len(world.retrainings.find()) == 1


def test_live_rollout_blocks_retrainings(world):
    world.monitor(schedule="0 3 * * *")
    world.divide_traffic()
    now = utc_now()
    schedule = RetrainingSchedule(world.deployments, "controller")
    schedule.request_due(now)
    schedule.request_due(now + timedelta(days=3))
    assert world.retrain_on_result() is None
    under_way = f"rollout 1 of endpoint '{ENDPOINT}' is live"
    assert refusals(world) == [under_way]
    with pytest.raises(AlreadyExists, match=under_way):
        request_retraining(world.deployments, ENDPOINT)
    assert world.retrainings.find() == []


def test_future_retraining_blocks_none(world):
    world.monitor(schedule="0 3 * * *")
    world.ahead = timedelta(days=365)
    schedule = RetrainingSchedule(world.deployments, "controller")
    schedule.request_due()
    ended(world)
    world.ahead = timedelta()  # The clock is corrected.

    assert world.retrain_on_result(world.spec(max_runs=1))
    ended(world)
    schedule.request_due()
    assert len(world.retrainings.find()) == 2
    world.ahead = timedelta(days=2)
    schedule.request_due()
    assert len(world.retrainings.find()) == 3
