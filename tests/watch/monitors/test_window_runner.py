"""A turn of a monitor during which a user changes the monitor, and the count of
consecutive alarms.
"""

from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.monitors import MonitorWindow
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.evaluation import Evaluator
from mlflow_deploy_plugin.watch.monitors.window_runner import Idle, WindowRunner, consecutive_alarms
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from tests.support.monitors import HOUR, NOON, MonitoredWorld


def test_a_window_that_is_due_after_a_monitor_was_changed_is_cut_as_the_monitor_stands_then(
    world: MonitoredWorld,
) -> None:
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR / 2

    def clock() -> datetime:
        """Return the time after the change, and make the change
        when the clock is read.
        """
        if is_watched and world.now < NOON + HOUR:
            world.now = NOON + HOUR + timedelta(minutes=6)
            world.store.replace_spec(world.spec(hourly={"every": "30m"}))
        return world.now

    is_watched = False
    store = open_store(world.settings.store_url, clock)
    runner = WindowRunner(
        Deployments(store, world.settings, world.said.append),
        Evaluator(world.answer),
        print,
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
def test_alarms_are_counted_for_the_same_column(alarms: list[str], count: int) -> None:
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
