"""A turn of a monitor during which a user changes the monitor, windows without rows,
and the count of consecutive alarms.
"""

import math
from dataclasses import replace

import pytest

from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitor_tables import MonitorWindow
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.kinds import drift
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator, count_rows
from mlflow_deploy_plugin.watch.monitors.window_runner import Idle, WindowRunner, consecutive_alarms
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY, Evidence
from tests.support.monitors import DUE, HOUR, NOON


def test_a_window_that_is_due_after_a_monitor_was_changed_is_cut_as_the_monitor_stands_then(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR / 2

    def clock():
        """Return the time after the change, and make the change
        when the clock is read.
        """
        if is_watched and world.now < NOON + HOUR:
            world.now = DUE
            world.store.replace_spec(world.spec(hourly={"every": "30m"}))
        return world.now

    is_watched = False
    store = open_store(world.settings.store_url, clock)
    runner = WindowRunner(
        Deployments(store, world.settings, world.said.append), Evaluator(world.answer), print
    )
    lease = store.acquire_lease("the test's", "the test", 60)
    assert lease is not None
    with LeaseKeeper(store, lease) as keeper:
        is_watched = True
        window = runner.run_next("flights", "hourly", keeper)
    store.close()

    assert not isinstance(window, Idle)
    assert window is not None
    assert window.end - window.start == HOUR / 2


def run_next(world, hours=1):
    """Return the outcomes of the next hours. The world's judge judges rows."""

    def judge(request):
        return world.answer(request) if count_rows(request) else drift.judge(request)

    deployments = Deployments(world.store, world.settings, world.said.append)
    runner = WindowRunner(deployments, Evaluator(judge), print)
    lease = world.store.acquire_lease("the test's", "the test", 60)
    assert lease is not None
    with LeaseKeeper(world.store, lease) as keeper:
        outcomes = [runner.run_next("flights", "hourly", keeper) for _ in range(hours)]
    world.store.release_lease(lease)
    return outcomes


def add_hours_with_rows(world, hours):
    """Store judged hours before NOON."""
    evidence = Evidence("bins", {ROWS_KEY: math.log(460)}).to_json()
    for number in range(-hours, 0):
        start = NOON + number * HOUR
        window = world.monitors.add("flights", "hourly", start, start + HOUR)
        world.monitors.update(
            replace(window, state="judged", verdict="no drift", evidence=evidence)
        )


def test_hours_without_rows_are_one_alert_until_the_next_hour_with_rows(world):
    world.endpoint(hourly={"retrain.project": "."})
    add_hours_with_rows(world, 7)
    world.rows(NOON + 2 * HOUR)
    world.now = NOON + 4 * HOUR

    silent = run_next(world, 2)
    (alert,) = Alerts(world.store).firing("flights")
    (loud,) = run_next(world)

    assert [window.verdict for window in silent] == ["drift", "drift"]
    assert [window.rows for window in silent] == [0, 0]
    assert silent[1].reason.startswith("number of rows: rows 460 → 0, fewer; since")
    assert "window 2 in a row" in silent[1].reason
    assert alert.monitor == "hourly"
    assert loud.verdict == "no drift"
    assert Alerts(world.store).firing("flights") == []
    actions = {event.action for event in world.store.events("flights")}
    assert not any(action.startswith("retrain") for action in actions)


def test_an_hour_without_rows_is_neither_judged_nor_reported_where_this_may_be_usual(world):
    world.endpoint()
    add_hours_with_rows(world, 6)
    world.now = NOON + 2 * HOUR

    (window,) = run_next(world)

    assert window.verdict == "not judged"
    assert window.reason.startswith("the window has no rows")
    assert window.run_id == ""
    assert Alerts(world.store).firing("flights") == []


@pytest.mark.parametrize(
    ("alarms", "count"),
    [
        (["x", "x", "x"], 3),
        (["x", "xy", "y"], 2),  # x and y each raised two alarms
        (["xy", "xy", "y"], 3),
        (["x", "y"], 1),
        (["x", "", "x"], 1),
        (["x", "?", "x"], 2),  # an undecided window between two alarms
        (["x", "", ""], 0),
        (["old", "old", "x"], 3),  # windows that an earlier version stored without their alarms
        (["old", "old"], 2),
        ([], 0),
    ],
)
def test_alarms_are_counted_for_the_same_column(alarms, count):
    """Each text is the columns with an alarm in a window, one letter each."""
    windows = []
    for number, columns in enumerate(alarms):
        window = MonitorWindow(
            0,
            "flights",
            "hourly",
            NOON + number * HOUR,
            NOON + (number + 1) * HOUR,
            1,
            False,
            "judged",
            NOON,
            NOON,
        )
        evidence = {} if columns == "old" else Evidence(alarms=tuple(columns.strip("?"))).to_json()
        verdict = {"": "no drift", "?": "not judged"}.get(columns, "drift")
        windows.append(replace(window, verdict=verdict, evidence=evidence))

    assert consecutive_alarms(windows) == count
