"""Crontab lines fire at the times that crontab(5) defines."""

from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.processes.durable_work import next_fire
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("schedule", "days"),
    [
        ("0 6 * * 0", ["Sun"]),
        ("0 6 * * 7", ["Sun"]),
        ("0 6 * * 1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("0 6 * * 5-7", ["Fri", "Sat", "Sun"]),
        ("0 6 * * mon,3", ["Mon", "Wed"]),
        ("0 6 * * 1-5/2", ["Mon", "Wed", "Fri"]),
        ("0 6 * * */2", ["Tue", "Thu", "Sat", "Sun"]),
        ("0 6 * NOV-12 Sun-tue", ["Mon", "Sun", "Tue"]),
        ("0 6 * * fri-sun", ["Fri", "Sat", "Sun"]),
        ("0 6 23 * 5", ["Mon", "Fri"]),  # 2026-11-23 is a Monday; either field may match.
    ],
)
def test_days_of_the_week_are_those_of_crontab(schedule, days):
    time = datetime(2026, 11, 22, 12, tzinfo=UTC)
    weekdays = []
    while (time := next_fire(schedule, "UTC", time)) <= datetime(2026, 11, 29, 12, tzinfo=UTC):
        weekdays.append(time.strftime("%a"))

    assert sorted(weekdays) == sorted(days)


@pytest.mark.parametrize("zone", ["Europe/Berlinn", "../etc/passwd", "Europe"])
def test_unknown_time_zone_is_refused(zone):
    with refused(InvalidConfig, "time_zone", f"'{zone}'"):
        next_fire("15 6 * * *", zone, datetime(2026, 11, 22, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "schedule", "after", "times"),
    [
        # The clocks change forward from 2:00 to 3:00, and skipped times fire at 3:00.
        ("Europe/Berlin", "30 2 * * *", "2027-03-27T12:00Z", ["28T01:00", "29T00:30"]),
        ("Europe/Berlin", "15 * * * *", "2027-03-28T00:00Z", ["28T00:15", "28T01:15", "28T02:15"]),
        (
            "Europe/Berlin",
            "*/30 2-3 * * *",
            "2027-03-28T00:00Z",
            ["28T01:00", "28T01:30", "29T00:00"],
        ),
        # The clocks change forward from 0:00 to 1:00.
        ("America/Santiago", "0 0 * * *", "2026-09-05T12:00Z", ["06T04:00", "07T03:00"]),
        # The clocks change forward from 23:00 to 0:00, so skipped times fire on the
        # next day.
        ("America/Nuuk", "30 23 * * *", "2027-03-28T00:50Z", ["28T01:00", "29T00:30"]),
        # The clocks change back from 3:00 to 2:00, and times fire once, except for
        # schedules of every hour.
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00Z", ["25T00:30", "26T01:30"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-25T01:10Z", ["26T01:30", "27T01:30"]),
        ("America/New_York", "30 1-2 * * *", "2026-11-01T06:10Z", ["01T07:30", "02T06:30"]),
        ("Europe/Berlin", "15 * * * *", "2026-10-24T23:50Z", ["25T00:15", "25T01:15", "25T02:15"]),
        (
            "Europe/Berlin",
            "*/40 * * * *",
            "2026-10-25T00:00Z",
            ["25T00:40", "25T01:00", "25T01:40", "25T02:00"],
        ),
        ("UTC", "0 0 29 2 *", "2096-03-01T00:00Z", ["29T00:00"]),
    ],
)
def test_clock_changes_neither_skip_nor_repeat_a_scheduled_time(zone, schedule, after, times):
    time = datetime.fromisoformat(after)
    fire_times = []
    for _ in times:
        time = next_fire(schedule, zone, time)
        fire_times.append(f"{time:%dT%H:%M}")

    assert fire_times == times
