"""Attempts at work: one at a time per key, several in parallel, with pauses, and
isolated from other failures.
"""

import threading
from collections.abc import Hashable
from datetime import UTC, datetime

import pytest

from mlflow_deploy_plugin.core.processes.durable_work import (
    MAX_BACKOFF,
    WorkRunner,
    backoff,
    next_fire,
)
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

SECONDS = 30.0


def test_backoff_grows_to_ten_minutes():
    pauses = [backoff(attempts).total_seconds() for attempts in (1, 2, 3, 4, 1000)]

    assert pauses == [15, 30, 60, 120, MAX_BACKOFF.total_seconds()]


def test_work_has_one_attempt_and_waits_for_pause():
    now = [0.0]
    go_on = threading.Event()
    attempts = []
    work = WorkRunner("test", 2, 30, monotonic=lambda: now[0])

    def attempt():
        attempts.append(threading.current_thread())
        go_on.wait(SECONDS)
        return 10.0

    work.start("one", attempt)
    wait_until(lambda: attempts, SECONDS, "it runs")
    work.start("one", attempt)
    assert not work.is_free("one")
    go_on.set()
    wait_until(work.finished.is_set, SECONDS, "it has ended")
    assert len(attempts) == 1

    work.start("one", attempt)
    assert len(attempts) == 1
    now[0] = 10.0
    assert work.is_free("one")
    work.start("one", attempt)
    wait_until(lambda: len(attempts) == 2, SECONDS, "it runs again")


def test_parallel_work_is_limited_and_fair():
    begun = []
    gates = {name: threading.Event() for name in "abc"}
    work = WorkRunner("test", 1, 30)

    def attempt(name):
        begun.append(name)
        gates[name].wait(SECONDS)
        return 0.0

    for name in gates:
        work.start(name, lambda name=name: attempt(name))  # type: ignore[misc]
    wait_until(lambda: begun == ["a"], SECONDS, "the first runs alone")
    gates["a"].set()
    wait_until(lambda: begun == ["a", "b"], SECONDS, "then the second")

    work.stop(wait=False)
    gates["b"].set()
    work.stop(wait=True)
    assert begun == ["a", "b"]


def test_failing_handler_stops_no_other_work():
    done = threading.Event()

    def handle(_key, error, _count):
        raise error

    def attempt():
        raise RuntimeError("a bug")

    def sound():
        done.set()
        return 0.0

    work = WorkRunner("test", 1, 0, handle)
    work.start("one", attempt)
    work.start("two", sound)
    assert done.wait(SECONDS)
    wait_until(lambda: work.is_free("one"), SECONDS, "it may be tried again")


def test_failures_are_counted_until_success(caplog):
    now = [0.0]
    defects = list[tuple[Hashable, str, int]]()
    work = WorkRunner(
        "test",
        1,
        30,
        lambda key, error, count: defects.append((key, str(error), count)),
        lambda: now[0],
    )

    fails = iter([True, True, False, True])

    def attempt():
        if next(fails):
            raise RuntimeError("a bug")
        return 30.0

    for _ in range(4):
        work.start("one", attempt)
        wait_until(work.finished.is_set, SECONDS, "it has ended")
        work.finished.clear()
        assert not work.is_free("one")
        now[0] += 30
    assert defects == [("one", "a bug", 1), ("one", "a bug", 2), ("one", "a bug", 1)]
    assert mentions(caplog.text, "test one", "30 s")


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
def test_weekdays_match_crontab(schedule, days):
    time = datetime(2026, 11, 22, 12, tzinfo=UTC)
    weekdays = []
    while (time := next_fire(schedule, "UTC", time)) <= datetime(2026, 11, 29, 12, tzinfo=UTC):
        weekdays.append(time.strftime("%a"))

    assert sorted(weekdays) == sorted(days)


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
def test_clock_changes_fire_each_time_once(zone, schedule, after, times):
    time = datetime.fromisoformat(after)
    fire_times = []
    for _ in times:
        time = next_fire(schedule, zone, time)
        fire_times.append(f"{time:%dT%H:%M}")

    assert fire_times == times
