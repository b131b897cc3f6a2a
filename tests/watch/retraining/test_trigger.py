"""The alarms that start a retraining, and the alarms that do not."""

from dataclasses import replace
from datetime import timedelta
from itertools import chain

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
    written = world.retrainings.update(
        replace(world.latest(), run_id="a run", figures=RetrainingFigures(attempt=1))
    )
    assert written is not None
    world.context.fail(world.latest(), "the test ends it")


def refusals(world):
    return [
        event.why
        for event in world.deployments.store.events(ENDPOINT)
        if event.action == "retrain.refused"
    ]


def test_an_alarm_starts_one_and_its_cause_is_written_down(world):
    begun = world.retrain_on_result(world.spec(mode="incremental"))
    assert begun is not None
    assert begun.endpoint == ENDPOINT
    assert begun.model == MODEL
    assert begun.state == "waiting"
    assert begun.spec["mode"] == "incremental"
    assert begun.cause["report"] == "http://mlflow/report"
    event = next(world.deployments.store.events(ENDPOINT, newest_first=True))
    assert event.action == "retrain.start"
    assert mentions(event.why, "monitor accuracy", str(DAY), "violated", "accuracy is 0.5")


def test_result_without_an_alarm_or_monitor_without_retraining_starts_none(world):
    for state in ("kept", "cannot tell"):
        assert world.retrain_on_result(state=state) is None
    without = world.spec().model_copy(update={"retrain": None})
    assert world.retrain_on_result(without) is None
    assert refusals(world) == []


def test_repeated_result_starts_only_one_retraining(world):
    first = world.retrain_on_result(world.spec(cooldown="1s"))
    ended(world)
    again = world.retrain_on_result(world.spec(cooldown="1s"))
    assert first is not None
    assert again == world.latest()
    assert again.id == first.id


def test_a_model_is_trained_once_at_a_time(world):
    world.retrain_on_result(world.spec(cooldown="1s"))
    world.ahead = timedelta(days=2)
    assert world.retrain_on_result(window=TOMORROW) is None
    assert refusals(world) == [f"model {MODEL} is already being trained: retraining 1 is waiting"]


def test_a_model_cools_down_and_the_trail_says_so_once(world):
    world.retrain_on_result()
    ended(world)
    for _ in range(2):
        assert world.retrain_on_result(window=TOMORROW) is None
    assert len(refusals(world)) == 1
    assert refusals(world)[0].startswith(f"model {MODEL} cools down until")
    world.ahead = timedelta(days=1, seconds=1)
    assert world.retrain_on_result(window=TOMORROW) is not None


def test_beyond_the_budget_somebody_has_to_look(world):
    spec = world.spec(max_runs=1)
    world.retrain_on_result(spec)
    ended(world)
    world.ahead = timedelta(days=29)
    assert world.retrain_on_result(spec, window=TOMORROW) is None
    assert mentions(refusals(world)[0], "1 times", "30 days", "max_runs is 1")
    world.ahead = timedelta(days=31)
    assert world.retrain_on_result(spec, window=TOMORROW) is not None


def test_failure_before_training_starts_the_cooldown_but_uses_no_budget(world):
    spec = world.spec(max_runs=1)
    world.retrain_on_result(spec)
    assert world.take().state == "failed"  # No rows were captured.
    assert world.retrain_on_result(spec, window=TOMORROW) is None
    assert refusals(world)[0].startswith(f"model {MODEL} cools down until")
    world.ahead = timedelta(days=1, seconds=1)
    assert world.retrain_on_result(spec, window=TOMORROW) is not None


def test_alarm_with_a_missing_project_starts_no_retraining_and_alerts_once(world):
    spec = world.spec()
    (world.project / "MLproject").rename(world.project / "gone")
    for _ in range(2):
        assert world.retrain_on_result(spec) is None
    assert len(refusals(world)) == 1
    assert refusals(world)[0].startswith(
        f"the model cannot be trained: project: {world.project} has no MLproject"
    )
    lines = list(
        chain.from_iterable(
            alert.detail["lines"] for alert in Alerts(world.deployments.store).recent()
        )
    )
    assert [line for line in lines if "be trained" in line] == [f"{ENDPOINT}: {refusals(world)[0]}"]
    assert world.retrainings.find() == []


def test_a_schedule_whose_project_has_gone_stands_in_the_history_once(world):
    world.monitor(schedule="0 3 * * *")
    (world.project / "MLproject").rename(world.project / "gone")
    schedule = RetrainingSchedule(world.deployments, "controller")
    for days in (3, 4):
        schedule.request_due(utc_now() + timedelta(days=days))
    assert refusals(world) == [
        (
            f"project: {world.project} has no MLproject; the folder of an MLflow project or a Git "
            "URI is expected"
        )
    ]


def test_of_schedules_that_are_broken_differently_each_stands_in_the_history_once(world):
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


def test_a_person_is_not_bound_by_cool_down_and_budget(world):
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


def test_a_schedule_asks_once_for_each_of_its_times(world):
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


def test_live_rollout_blocks_retrainings_and_postpones_the_schedule(world):
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


def test_a_training_dated_by_a_clock_that_was_ahead_holds_up_no_later_one(world):
    world.monitor(schedule="0 3 * * *")
    world.ahead = timedelta(days=365)
    schedule = RetrainingSchedule(world.deployments, "controller")
    schedule.request_due()
    ended(world)
    world.ahead = timedelta()  # The clock is corrected.

    assert world.retrain_on_result(world.spec(max_runs=1)) is not None
    ended(world)
    schedule.request_due()
    assert len(world.retrainings.find()) == 2
    world.ahead = timedelta(days=2)
    schedule.request_due()
    assert len(world.retrainings.find()) == 3
