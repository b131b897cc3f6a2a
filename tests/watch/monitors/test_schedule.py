"""The due times of windows: crontabs across changes of daylight saving time, the grid
of windows, pauses.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.serve.inference_log.stats import Watermark, read_watermarks
from mlflow_deploy_plugin.serve.inference_log.storage import locate_log
from mlflow_deploy_plugin.watch.monitors.schedule import (
    due_at,
    jitter,
    overviews,
    readiness,
)
from tests.support.monitors import DUE, HOUR, NOON
from tests.support.refusals import mentions

LABELS = {"kind": "performance", "require": "accuracy>=0.8", "labels_within": "1d"}
# In Berlin, the clocks change on 2026-03-29 at 2:00 and on 2026-10-25 at 3:00.
BERLIN = {"schedule": "15 6 * * *", "time_zone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("end", "fields", "at"),
    [
        ("2026-11-20", {}, "2026-11-20T00:05"),
        ("2026-11-20", {"grace": "1h"}, "2026-11-20T01:00"),
        ("2026-11-20", LABELS, "2026-11-21T00:05"),
        ("2026-11-20", {"schedule": "4 0 * * *", "grace": "5m"}, "2026-11-21T00:04"),
        ("2026-11-20", {"schedule": "5 0 * * *", "grace": "5m"}, "2026-11-20T00:05"),
        ("2026-03-28", BERLIN, "2026-03-28T05:15"),
        ("2026-03-29", BERLIN, "2026-03-29T04:15"),
        ("2026-10-25", BERLIN, "2026-10-25T05:15"),
        ("2026-03-29", BERLIN | {"schedule": "30 2 * * *"}, "2026-03-29T01:00"),
    ],
)
def test_window_is_due_after_grace_by_schedule(end, fields, at):
    spec = MonitorSpec.model_validate(fields)
    due = due_at("flights", "daily", spec, datetime.fromisoformat(end + "T00:00Z"))

    assert due - jitter("flights", "daily", spec) == datetime.fromisoformat(at + "Z")


def test_monitors_have_fixed_different_jitters():
    spec = MonitorSpec(every="1h")
    first, again = ([jitter("flights", str(name), spec) for name in range(20)] for _ in range(2))

    assert first == again
    assert len(set(first)) == 20
    assert timedelta(0) <= min(first) <= max(first) <= timedelta(seconds=30)
    assert jitter("flights", "7", MonitorSpec(every="10s")) <= timedelta(seconds=0.1)


NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MARK = Watermark("one", ("flights",), complete_until=NOW - timedelta(seconds=2), written_at=NOW)
LATER = replace(MARK, agent="two", complete_until=NOW - timedelta(minutes=3))


def test_the_slowest_agent_counts():
    ready = readiness([MARK, LATER], "flights", NOW)

    assert ready.complete_until == LATER.complete_until
    assert not ready.covers(NOW - timedelta(minutes=1))
    assert ready.covers(LATER.complete_until)


def test_ended_or_unrelated_agent_is_ignored():
    assert readiness(
        [replace(MARK, ended=True), replace(MARK, endpoints=("other",))], "flights", NOW
    ).covers(NOW)


@pytest.mark.parametrize("minutes", [-61, 24 * 60])
def test_silent_or_wrong_agent_is_ignored(minutes):
    ignored = replace(LATER, written_at=NOW + timedelta(minutes=minutes))

    ready = readiness([MARK, ignored], "flights", NOW)

    assert ready.complete_until == MARK.complete_until
    assert mentions(ready.notes[0], "agent two")


def overview_of(world):
    (overview,) = overviews(
        world.store, "flights", read_watermarks(locate_log(world.settings.inference_log))
    )
    return overview


def test_monitor_waits_for_window_and_rows(world):
    world.endpoint()
    before = overview_of(world)
    world.now = DUE
    world.watermark(NOON + HOUR / 2)
    after = overview_of(world)

    assert (before.status, before.why, before.last) == ("waiting", "", None)
    assert timedelta(minutes=65) <= before.next_due - NOON <= timedelta(minutes=66)
    assert mentions(after.why, "waiting for rows", "2026-11-20 12:30:00 UTC")


def test_unknown_time_zone_breaks_its_monitor(world):
    world.endpoint(hourly={"schedule": "0 6 * * *", "time_zone": "Nowhere/Near"})

    overview = overview_of(world)

    assert (overview.status, overview.next_due) == ("broken", None)
    assert "time_zone 'Nowhere/Near'" in overview.why
