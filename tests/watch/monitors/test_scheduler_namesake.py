"""Rows of a deleted endpoint in the log do not belong to a new endpoint of the same
name.
"""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact
from mlflow_deploy_plugin.serve.inference_log.stats import log_stats
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.drift.sketches.hourly import window_versions
from mlflow_deploy_plugin.watch.monitors import manual_runs
from mlflow_deploy_plugin.watch.monitors.evaluation import endpoint_log
from mlflow_deploy_plugin.watch.monitors.manual_runs import find_monitor
from tests.support.monitors import DUE, HOUR, NOON, SECONDS
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until

MINUTE = timedelta(minutes=1)


@pytest.fixture
def heir(world):
    """An endpoint created at 13:30 with rows at 13:40 and 14. A deleted endpoint of its
    name has rows at 11, 12, 13.
    """
    world.endpoint()
    world.rows(NOON - HOUR, NOON, NOON, NOON + HOUR)
    world.now = NOON + HOUR + 20 * MINUTE
    world.store.remove_endpoint("flights")
    world.now = NOON + HOUR + 30 * MINUTE
    world.endpoint()
    world.rows(NOON + HOUR + 40 * MINUTE, rows=2)
    world.rows(NOON + 2 * HOUR)
    world.now = NOON + 3 * HOUR
    return world


def judged(world, window=None):
    deployments = Deployments(world.store, world.settings, world.said.append)
    monitor = find_monitor(deployments, "flights", None)
    written, _ = manual_runs.run_window(deployments, monitor, window, world.answer)
    return written.start, written.log_rows


@pytest.mark.parametrize("is_compacted", [False, True])
def test_rows_of_a_deleted_namesake_are_ignored(heir, is_compacted):
    whole = open_log(heir.settings.inference_log)
    if is_compacted:
        later = datetime.now(UTC) + 24 * HOUR  # Files that were changed lately are kept.
        assert compact(whole, "flights", later).written_files == 2
    day = Window(NOON - 12 * HOUR, NOON + 12 * HOUR)
    # The sketches of all rows are kept.
    assert window_versions(whole, "flights", day) == {("flight-delay", "1"): 17}

    log = endpoint_log(heir.settings, heir.store.endpoint("flights"))

    assert [hour.start for hour in log.hours("flights")] == [NOON + HOUR, NOON + 2 * HOUR]
    assert window_versions(log, "flights", day) == {("flight-delay", "1"): 5}
    assert judged(heir, Window(NOON + HOUR, NOON + 2 * HOUR)) == (NOON + HOUR, 2)
    with refused(NotFound, "2026-11-20T14:00"):
        judged(heir, Window(NOON, NOON + HOUR))
    stats = log_stats(log, "flights")
    assert (stats.rows, stats.first) == (5, NOON + HOUR + 40 * MINUTE)


def test_unreadable_endpoint_stops_no_other(world):
    world.endpoint("flights")
    world.endpoint("taxis")
    world.rows(NOON, endpoint="taxis")
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    Alerts(world.store).change("f", lambda _: Alert("f", "flights", "hourly", "firing", NOON, NOON))
    world.spoil("flights")
    world.now = DUE

    world.start()
    (judged,) = world.wait_for(1)

    assert judged.endpoint == "taxis"
    assert judged.verdict == "no drift"
    wait_until(
        lambda: any(mentions(line, "'flights'", "cannot be read") for line in world.said), SECONDS
    )
    assert [entry.state for entry in world.monitors.windows("flights")] == [begun.state]
    assert [entry.endpoint for entry in Alerts(world.store).firing()] == ["flights"]


def test_records_written_after_deletion_are_removed(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + 2 * HOUR

    written = []

    def deleted_meanwhile(_):
        world.store.remove_endpoint("flights")
        world.monitors.add("flights", "hourly", NOON + HOUR, NOON + 2 * HOUR)
        world.monitors.update_state("flights", "hourly", made_up_to=NOON + 2 * HOUR)
        written.append(True)
        return "no drift"

    world.judge = deleted_meanwhile
    world.start()
    wait_until(lambda: written, SECONDS, "the window is judged")

    wait_until(
        lambda: not (world.monitors.states() or world.monitors.windows()),
        SECONDS,
        "nothing is left",
    )
