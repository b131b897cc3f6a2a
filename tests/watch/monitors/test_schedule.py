"""The due times of windows: crontabs across changes of daylight saving time, the grid
of windows, pauses.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.serve.inference_log.windows import window_at
from mlflow_deploy_plugin.watch.monitors.schedule import (
    due_at,
    jitter,
    overviews,
    readiness,
    windows_between,
)
from tests.support.monitors import DUE, HOUR, NOON
from tests.support.refusals import mentions

MIDNIGHT = datetime(2026, 11, 20, tzinfo=UTC)


def due(end, **fields):
    spec = MonitorSpec.model_validate(fields)
    return due_at("flights", "daily", spec, end) - jitter("flights", "daily", spec)


def test_a_window_is_due_when_it_is_over_and_its_grace_has_passed():
    assert due(MIDNIGHT) == MIDNIGHT + timedelta(minutes=5)
    assert due(MIDNIGHT, grace="1h") == MIDNIGHT + timedelta(hours=1)


def test_a_monitor_of_labels_waits_for_them():
    fields = {"kind": "performance", "require": "accuracy>=0.8", "labels_within": "1d"}

    assert due(MIDNIGHT, **fields) == MIDNIGHT + timedelta(days=1, minutes=5)


@pytest.mark.parametrize(
    ("end", "at"),
    [
        # In Berlin, the clocks change forward on 2026-03-29 at 2:00 and back on
        # 2026-10-25 at 3:00.
        (datetime(2026, 3, 28, tzinfo=UTC), "2026-03-28T05:15"),
        (datetime(2026, 3, 29, tzinfo=UTC), "2026-03-29T04:15"),
        (datetime(2026, 10, 24, tzinfo=UTC), "2026-10-24T04:15"),
        (datetime(2026, 10, 25, tzinfo=UTC), "2026-10-25T05:15"),
    ],
)
def test_a_schedule_keeps_to_the_clock_of_its_time_zone_over_a_change(end, at):
    assert due(end, schedule="15 6 * * *", time_zone="Europe/Berlin") == datetime.fromisoformat(
        at + "Z"
    )


def test_a_time_that_a_clock_change_leaves_out_comes_just_after_it():
    end = datetime(2026, 3, 29, tzinfo=UTC)

    assert due(end, schedule="30 2 * * *", time_zone="Europe/Berlin") == datetime(
        2026, 3, 29, 1, 0, tzinfo=UTC
    )


def test_a_schedule_is_looked_at_after_the_grace_only():
    assert due(MIDNIGHT, schedule="4 0 * * *", grace="5m") == MIDNIGHT + timedelta(
        days=1, minutes=4
    )
    assert due(MIDNIGHT, schedule="5 0 * * *", grace="5m") == MIDNIGHT + timedelta(minutes=5)


def test_monitors_do_not_all_begin_at_once_and_one_always_at_the_same_time():
    spec = MonitorSpec(every="1h")
    jitters = {name: jitter("flights", name, spec) for name in map(str, range(20))}

    assert len(set(jitters.values())) == 20
    assert all(timedelta(0) <= delay <= timedelta(seconds=30) for delay in jitters.values())
    assert jitter("flights", "7", spec) == jitters["7"]
    assert jitter("flights", "7", MonitorSpec(every="10s")) <= timedelta(seconds=0.1)


def test_windows_lie_on_their_grid():
    spec = MonitorSpec(every="6h")
    begin = MIDNIGHT + timedelta(hours=1)

    windows = [
        window_at(start, spec.every)
        for start in windows_between(spec, begin, begin + timedelta(hours=18))
    ]

    assert list(map(str, windows)) == [
        "2026-11-20T06:00:00/2026-11-20T12:00:00",
        "2026-11-20T12:00:00/2026-11-20T18:00:00",
    ]
    assert all(window.end == after.start for window, after in pairwise(windows))


NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MARK = Watermark("one", ("flights",), complete_until=NOW - timedelta(seconds=2), written_at=NOW)
LATER = replace(MARK, agent="two", complete_until=NOW - timedelta(minutes=3))


def test_the_slowest_agent_counts():
    ready = readiness([MARK, LATER], "flights", NOW)

    assert ready.complete_until == LATER.complete_until
    assert not ready.covers(NOW - timedelta(minutes=1))
    assert ready.covers(LATER.complete_until)


def test_an_agent_that_has_ended_or_serves_others_is_not_waited_for():
    assert readiness(
        [replace(MARK, ended=True), replace(MARK, endpoints=("other",))], "flights", NOW
    ).covers(NOW)


def test_an_agent_that_is_silent_for_an_hour_is_passed_over_with_a_note():
    silent = replace(LATER, written_at=NOW - timedelta(minutes=61))

    ready = readiness([MARK, silent], "flights", NOW)

    assert ready.complete_until == MARK.complete_until
    assert ready.notes == (
        "agent two has been silent since 2026-11-20 10:59:00 UTC: the window does not wait for "
        "its rows",
    )


def test_an_agent_whose_clock_is_far_ahead_is_passed_over_with_a_note():
    ahead = replace(LATER, written_at=NOW + timedelta(days=1))

    (note,) = readiness([ahead], "flights", NOW).notes

    assert note.startswith("the clock of agent two is an hour or more ahead")


def overview_of(world):
    (overview,) = overviews(
        world.store, "flights", read_watermarks(locate_log(world.settings.inference_log))
    )
    return overview


def test_a_monitor_waits_for_its_window_then_for_the_rows_of_it(world):
    world.endpoint()
    before = overview_of(world)
    world.now = DUE
    world.watermark(NOON + HOUR / 2)
    after = overview_of(world)

    assert before.status == "waiting"
    assert before.why == ""
    assert before.last is None
    assert before.next_due is not None
    assert timedelta(minutes=65) <= before.next_due - NOON <= timedelta(minutes=66)
    assert mentions(after.why, "waiting for rows", "2026-11-20 12:30:00 UTC")


def test_failing_monitor_shows_the_reason_and_the_next_attempt(world):
    def judge(asked):
        raise OnnxserveError("the reference cannot be read")

    world.judge = judge
    world.due()
    world.start()
    window = world.wait_for_attempt(1)

    overview = overview_of(world)

    assert overview.status == "failing"
    assert overview.why == "attempt 1: the reference cannot be read"
    assert overview.next_due == window.not_before == world.now + timedelta(seconds=15)


def test_a_time_zone_that_is_unknown_here_breaks_its_monitor(world):
    world.endpoint(hourly={"schedule": "0 6 * * *", "time_zone": "Nowhere/Near"})

    overview = overview_of(world)

    assert overview.status == "broken"
    assert overview.next_due is None
    assert "time_zone 'Nowhere/Near'" in overview.why
