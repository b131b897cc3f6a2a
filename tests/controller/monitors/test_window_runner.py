"""A turn of a monitor during which a user changes the monitor."""

from datetime import datetime, timedelta

from mlflow_deploy_plugin.controller.monitors.evaluation import Evaluator
from mlflow_deploy_plugin.controller.monitors.window_runner import Idle, WindowRunner
from mlflow_deploy_plugin.deployments import Deployments
from mlflow_deploy_plugin.store import open_store
from mlflow_deploy_plugin.store.leases import LeaseKeeper
from tests.support.monitors import HOUR, NOON, MonitoredWorld


def test_a_window_that_is_due_after_a_monitor_was_changed_is_cut_as_the_monitor_stands_then(
    world: MonitoredWorld,
) -> None:
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR / 2

    def clock() -> datetime:
        """Return the time after the change, and make the change when the clock is read."""
        if is_watched and world.now < NOON + HOUR:
            world.now = NOON + HOUR + timedelta(minutes=6)
            world.store.replace_spec(world.spec(hourly={"every": "30m"}))
        return world.now

    is_watched = False
    store = open_store(world.settings.store_url, clock)
    runner = WindowRunner(Deployments(store, world.settings, world.said.append), Evaluator(world.answer), print)
    lease = store.acquire_lease("the test's", "the test", 60)
    assert lease is not None
    with LeaseKeeper(store, lease) as keeper:
        is_watched = True
        window = runner.run_next("flights", "hourly", keeper)
    store.close()

    assert not isinstance(window, Idle)
    assert window is not None
    assert window.end - window.start == HOUR / 2
