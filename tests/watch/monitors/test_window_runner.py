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
from mlflow_deploy_plugin.watch.monitors.window_runner import WindowRunner, consecutive_alarms
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY, Evidence
from tests.support.monitors import DUE, HOUR, NOON
from tests.support.refusals import mentions


def test_changed_length_applies_to_later_windows(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR / 2

    def clock():
        """The monitor is changed when the clock is read."""
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
    assert lease
    with LeaseKeeper(store, lease) as keeper:
        is_watched = True
        window = runner.run_next("flights", "hourly", keeper)
    store.close()

    assert isinstance(window, MonitorWindow)
    assert window.end - window.start == HOUR / 2


def run_next(world, hours=1):
    """Return the outcomes of the next hours. The world's judge judges rows."""

    def judge(request):
        return world.answer(request) if count_rows(request) else drift.judge(request)

    deployments = Deployments(world.store, world.settings, world.said.append)
    runner = WindowRunner(deployments, Evaluator(judge), print)
    lease = world.store.acquire_lease("the test's", "the test", 60)
    with LeaseKeeper(world.store, lease) as keeper:
        outcomes = [runner.run_next("flights", "hourly", keeper) for _ in range(hours)]
    world.store.release_lease(lease)
    return outcomes


def test_hours_without_rows_are_one_alert(world):
    world.endpoint(hourly={"retrain.project": "."})
    evidence = Evidence("bins", {ROWS_KEY: math.log(460)}).to_json()
    for number in range(-7, 0):
        start = NOON + number * HOUR
        window = world.monitors.add("flights", "hourly", start, start + HOUR)
        judged = replace(window, state="judged", verdict="no drift", evidence=evidence)
        world.monitors.update(judged)
    world.rows(NOON + 2 * HOUR)
    world.now = NOON + 4 * HOUR

    silent = run_next(world, 2)
    (alert,) = Alerts(world.store).firing("flights")
    (loud,) = run_next(world)

    assert [(window.verdict, window.rows) for window in silent] == [("drift", 0), ("drift", 0)]
    assert mentions(silent[1].reason, "number of rows: rows 460 → 0, fewer", "window 2 in a row")
    assert alert.monitor == "hourly"
    assert loud.verdict == "no drift"
    assert Alerts(world.store).firing("flights") == []
    actions = {event.action for event in world.store.events("flights")}
    assert not any(action.startswith("retrain") for action in actions)


@pytest.mark.parametrize(
    ("alarms", "count"),
    [
        (["x", "x", "x"], 3),
        (["x", "xy", "y"], 2),  # x and y each raised two alarms
        (["xy", "xy", "y"], 3),
        (["x", "y"], 1),
        (["x", "", "x"], 1),
        (["x", "?", "x"], 2),  # an undecided window between two alarms
        (["old", "old", "x"], 3),  # windows that an earlier version stored without their alarms
    ],
)
def test_consecutive_alarms_share_a_column(alarms, count):
    """Each text is the columns with an alarm in a window, one letter each."""
    windows = []
    for number, columns in enumerate(alarms):
        hour = (NOON + number * HOUR, NOON + (number + 1) * HOUR)
        window = MonitorWindow(0, "flights", "hourly", *hour, 1, False, "judged", NOON, NOON)
        evidence = {} if columns == "old" else Evidence(alarms=tuple(columns.strip("?"))).to_json()
        verdict = {"": "no drift", "?": "not judged"}.get(columns, "drift")
        windows.append(replace(window, verdict=verdict, evidence=evidence))

    assert consecutive_alarms(windows) == count
