"""How monitors stand."""

from datetime import timedelta

from mlflow_deploy_plugin.controller.monitors.overview import MonitorOverview, overviews
from mlflow_deploy_plugin.errors import OnnxserveError
from mlflow_deploy_plugin.inference_log import locate_log, read_watermarks
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from tests.support.monitors import HOUR, NOON, MonitoredWorld


def overview_of(world: MonitoredWorld) -> MonitorOverview:
    (one,) = overviews(world.store, "flights", read_watermarks(locate_log(world.settings.inference_log)))
    return one


def test_a_monitor_waits_for_its_window_then_for_the_rows_of_it(world: MonitoredWorld) -> None:
    world.endpoint()
    before = overview_of(world)
    world.now = NOON + HOUR + timedelta(minutes=6)
    world.watermark(NOON + HOUR / 2)
    after = overview_of(world)

    assert (before.status, before.why, before.last) == ("waiting", "", None)
    assert before.next_due is not None
    assert timedelta(minutes=65) <= before.next_due - NOON <= timedelta(minutes=66)
    assert after.why == "waits for rows: the log is complete until 2026-11-20 12:30:00 UTC"


def test_what_has_failed_says_why_and_when_it_is_tried_again(world: MonitoredWorld) -> None:
    def judge(asked: WindowRequest) -> str:
        raise OnnxserveError("the reference cannot be read")

    world.judge = judge
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR + timedelta(minutes=6)
    world.start()
    window = world.wait_for_attempt(1)

    found = overview_of(world)

    assert (found.status, found.why) == ("failing", "attempt 1: the reference cannot be read")
    assert found.next_due == window.not_before == world.now + timedelta(seconds=15)


def test_a_time_zone_that_is_unknown_here_breaks_its_monitor(world: MonitoredWorld) -> None:
    world.endpoint(hourly={"schedule": "0 6 * * *", "time_zone": "Nowhere/Near"})

    found = overview_of(world)

    assert (found.status, found.next_due) == ("broken", None)
    assert "time_zone 'Nowhere/Near'" in found.why
