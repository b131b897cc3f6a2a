"""The scheduler on a real store and log with a simulated clock: the judged windows,
their order, and gaps.
"""

import threading
from dataclasses import replace
from datetime import timedelta
from itertools import count

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.tables import LeaseRow
from mlflow_deploy_plugin.watch.monitors.evaluation import count_rows
from mlflow_deploy_plugin.watch.monitors.scheduler import lease_name
from tests.support.monitors import DUE, HOUR, NOON, SECONDS
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


def test_window_is_judged_after_its_grace(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR + timedelta(minutes=4)
    world.start()
    assert world.monitors.windows() == []

    world.now += timedelta(minutes=2)
    (window,) = world.wait_for(1)

    assert (window.start, window.end, window.revision) == (NOON, NOON + HOUR, 1)
    assert (window.verdict, window.run_id, window.log_rows) == ("no drift", "run-1", 3)
    assert world.monitors.state("flights", "hourly").made_up_to == NOON + HOUR
    wait_until(lambda: world.said, SECONDS, "it is said")
    assert mentions(world.said[0], "flights: monitor hourly", "no drift", "run-1")


def test_missed_windows_are_judged_oldest_first(world):
    world.endpoint()
    world.rows(NOON, NOON + 2 * HOUR, NOON + 3 * HOUR)
    world.now = NOON + 5 * HOUR

    world.start()
    windows = world.wait_for(4)

    starts = [request.window.start for request in world.asked]
    assert starts == [NOON, NOON + 2 * HOUR, NOON + 3 * HOUR]
    assert [(window.verdict, window.run_id) for window in windows] == [
        ("no drift", "run-1"),
        ("not judged", ""),
        ("no drift", "run-2"),
        ("no drift", "run-3"),
    ]


def test_long_backlog_is_limited_and_noted(world):
    world.endpoint()
    world.now = NOON + 33 * HOUR

    world.start(max_catch_up=3)
    windows = world.wait_for(3)

    assert [window.start for window in windows] == [
        NOON + number * HOUR for number in range(29, 32)
    ]
    note = world.monitors.state("flights", "hourly").note
    assert mentions(note, "29 windows", "--from 2026-11-20T12:00 --to 2026-11-21T17:00")


def test_window_waits_for_the_slowest_agent(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR + timedelta(minutes=10)
    world.watermark(NOON + HOUR - timedelta(seconds=1))
    world.watermark(world.now, agent="two")
    looks = world.count_looks()
    world.start()
    wait_until(lambda: looks() > 20, SECONDS)
    assert world.asked == []

    world.watermark(NOON + HOUR)

    world.wait_for(1)


def test_failing_monitor_is_retried_then_given_up(world):
    def judge(asked):
        if asked.monitor == "broken" and asked.window.start == NOON:
            raise OnnxserveError("the reference cannot be read")
        return "no drift"

    world.judge = judge
    world.endpoint(broken={}, sound={})
    world.rows(NOON, NOON + HOUR)
    world.now = DUE
    world.start()
    (sound,) = world.wait_for(1, "sound")
    assert sound.start == NOON

    pauses = []
    for attempts in range(1, 5):
        window = world.wait_for_attempt(attempts, "broken")
        assert mentions(window.reason, "the reference")
        pauses.append((window.not_before - world.now).total_seconds())
        world.now = window.not_before
    (failed,) = world.wait_for(1, "broken", "failed")
    assert pauses == [15, 30, 60, 120]
    assert failed.attempts == 5
    assert [alert.monitor for alert in Alerts(world.store).firing("flights")] == ["broken"]

    world.now = DUE + HOUR
    assert world.wait_for(1, "broken")[-1].start == NOON + HOUR


def test_window_is_retried_while_mlflow_is_down(world):
    is_down = True

    def judge(asked):
        if is_down:
            raise RegistryUnavailable("MLflow does not answer")
        return "drift"

    world.judge = judge
    world.due()
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update(replace(begun, attempts=5))
    world.start()
    world.wait_for_attempt(6)

    is_down = False
    world.now += HOUR

    assert world.wait_for(1)[0].verdict == "drift"


def test_slow_monitor_delays_no_other(world):
    may_end = threading.Event()

    def judge(asked):
        if asked.monitor == "slow":
            may_end.wait(SECONDS)
        return "no drift"

    world.judge = judge
    world.endpoint(slow={}, other={})
    world.rows(NOON, NOON + HOUR)
    world.now = DUE + HOUR
    world.start()

    assert len(world.wait_for(2, "other")) == 2
    assert len(world.wait_for(1, "slow", "running")) == 1
    may_end.set()
    world.wait_for(2, "slow")


def test_files_without_new_rows_are_ignored(world):
    world.due()
    world.start()
    (window,) = world.wait_for(1)
    world.end()
    (file,) = (world.folder / "inference_log").rglob("*.parquet")
    # The same segment was shipped twice.
    (file.parent / "again.parquet").write_bytes(file.read_bytes())

    world.start()

    wait_until(lambda: world.monitors.windows()[0].log_digest != window.log_digest, SECONDS)
    assert len(world.monitors.windows()) == 1


def test_paused_monitor_catches_up_when_resumed(world):
    world.due(paused={}, other={})
    world.monitors.pause("flights", "paused")
    world.start()
    world.wait_for(1, "other")
    assert world.monitors.windows(monitor="paused") == []

    world.monitors.pause("flights", "paused", paused=False)

    world.wait_for(1, "paused")


def test_windows_of_removed_monitor_are_closed(world):
    def judge(asked):
        raise OnnxserveError("not now")

    world.judge = judge
    world.due()
    world.start()
    wait_until(lambda: world.monitors.windows(states=("pending",)) and world.asked, SECONDS)

    world.store.replace_spec(world.spec(daily={"every": "1d"}))

    (window,) = world.wait_for(1, state="failed")
    assert mentions(window.reason, "monitor", "deleted")


@pytest.mark.parametrize(
    ("created_at", "ahead", "judged_too_early"),
    [(NOON, NOON + 50 * HOUR, 2), (NOON + 48 * HOUR, NOON + 50 * HOUR, 1)],
    ids=["so far that windows were left out", "already when the endpoint was created"],
)
def test_windows_after_a_clock_correction_are_judged(world, created_at, ahead, judged_too_early):
    world.now = created_at
    world.endpoint()
    world.now = ahead  # The true time is half past 12.
    world.start(max_catch_up=2)
    world.wait_for(judged_too_early)

    world.now = NOON + HOUR / 2
    world.rows(NOON)
    wait_until(lambda: world.monitors.state("flights", "hourly").made_up_to == NOON, SECONDS)
    assert world.monitors.windows() == []
    world.now = DUE
    (judged,) = world.wait_for(1)

    assert (judged.start, judged.revision, judged.verdict) == (NOON, 1, "no drift")
    assert world.monitors.state("flights", "hourly").note == ""


def test_alert_fires_after_consecutive_alarms(world):
    verdicts = iter(["drift", "cannot tell", "drift"])
    world.judge = lambda asked: next(verdicts)
    world.endpoint(hourly={"consecutive": 2})
    world.rows(*[NOON + number * HOUR for number in range(3)])
    world.now = DUE + 2 * HOUR

    world.start()
    world.wait_for(3)

    assert world.monitors.state("flights", "hourly").consecutive == 2
    assert [alert.monitor for alert in Alerts(world.store).firing("flights")] == ["hourly"]
    assert sum(mentions(line, "1 of 2 consecutive windows") for line in world.said) == 1


def test_unreadable_log_is_noted_until_resolved(world):
    world.due()
    marks = world.folder / "inference_log" / "_watermarks"
    marks.parent.mkdir(parents=True, exist_ok=True)
    world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update_state("flights", "hourly", made_up_to=NOON + HOUR)
    marks.write_text("no folder")

    def said():
        return sum("cannot be run" in line for line in world.said)

    world.start(monotonic=count(0, 30).__next__, lease_seconds=10_000)
    wait_until(lambda: world.monitors.state("flights", "hourly").note, SECONDS, "it is noted")
    wait_until(lambda: Alerts(world.store).firing("flights"), SECONDS, "somebody is told")
    assert world.asked == []
    marks.unlink()
    world.wait_for(1)
    wait_until(lambda: not world.monitors.state("flights", "hourly").note, SECONDS, "it is over")
    assert said() == 1

    marks.write_text("no folder")
    world.now += HOUR
    wait_until(lambda: said() == 2, SECONDS, "it is said again")


def test_failed_search_for_late_rows_is_noted(world):
    world.due()
    world.start()
    world.wait_for(1)
    world.end()
    world.rows(NOON, rows=2)
    reason = "a file of rows cannot be read"

    def count_late(asked):
        if reason:
            raise OnnxserveError(reason)
        return count_rows(asked)

    def note():
        return world.monitors.state("flights", "hourly").note

    # The search is repeated after an hour.
    world.start(monotonic=count(0, 400).__next__, count=count_late, lease_seconds=1e7)
    wait_until(note, SECONDS, "it is noted")
    world.rows(NOON + HOUR)
    world.now += HOUR
    assert [window.start for window in world.wait_for(2)] == [NOON, NOON + HOUR]
    assert mentions(note(), "late data", "a file of rows")
    wait_until(lambda: Alerts(world.store).recent(), SECONDS, "somebody is told")

    reason = ""
    world.wait_for(3)
    wait_until(lambda: not note(), SECONDS, "it is over")
    assert sum("cannot search for" in line for line in world.said) == 1


def test_idle_monitors_share_store_reads(world, monkeypatch):
    for number in range(5):
        world.endpoint(f"e{number}", a={}, b={}, c={}, d={})
    reading = world.store.reading
    reads = []

    def counted():
        reads.append(1)
        return reading()

    world.start()
    monkeypatch.setattr(world.store, "reading", counted)
    looked = world.count_looks()
    wait_until(lambda: looked() > 20, SECONDS, "it has looked again and again")
    assert len(reads) < 10 * looked()


def test_two_schedulers_judge_each_window_once(world):
    world.endpoint(a={}, b={})
    world.rows(NOON, NOON + HOUR)
    world.now = DUE + HOUR

    other = world.open_store()
    world.start()
    world.start(other)
    world.wait_for(4)

    assert len(world.asked) == 4
    assert len({(request.monitor, request.window) for request in world.asked}) == 4
    world.end()
    other.close()


def test_window_of_a_dead_controller_is_finished(world):
    world.due()
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update(replace(begun, state="running"))
    world.monitors.update_state("flights", "hourly", made_up_to=NOON + HOUR)
    assert world.store.acquire_lease(lease_name("flights", "hourly"), "dead", 1)

    world.start(lease_seconds=4)

    (window,) = world.wait_for(1)
    assert window.id == begun.id
    assert window.verdict == "no drift"
    assert window.attempts == 1


def test_window_that_kills_controllers_is_given_up(world):
    world.due()
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update(replace(begun, state="running", attempts=4))

    world.start()

    (window,) = world.wait_for(1, state="failed")
    assert world.asked == []
    assert window.attempts == 5
    assert window.reason.startswith("the process that judged the window was killed")


def test_verdict_under_a_lost_lease_is_discarded(world):
    def judge(asked):
        if len(world.asked) > 1:
            return "no drift"
        # Another process takes the lease after its full duration.
        with world.store.transaction() as session:
            lease = session.get(LeaseRow, lease_name("flights", "hourly"))
            lease.token = lease.token + 1
            lease.holder = ""
        return "drift"

    world.judge = judge
    world.due()

    world.start(lease_seconds=3, look_seconds=0.5)

    (window,) = world.wait_for(1)
    assert window.verdict == "no drift"
    assert len(world.asked) == 2


def test_interrupted_window_is_judged_by_the_next(world):
    may_end = threading.Event()

    def judge(asked):
        may_end.wait(SECONDS)
        raise ProcessEnded("it was ended with the controller")

    world.judge = judge
    world.due()
    over = world.start()
    wait_until(lambda: world.asked, SECONDS)
    over.set()
    may_end.set()
    world.end()
    (left,) = world.monitors.windows()
    assert left.state == "pending"
    assert left.attempts == 0

    world.judge = lambda asked: "drift"
    world.start()

    assert world.wait_for(1)[0].verdict == "drift"


def test_alert_of_a_removed_monitor_is_resolved(world):
    world.judge = lambda asked: "drift"
    world.due(hourly={}, other={"every": "30d"})
    world.start()
    world.wait_for(1, "hourly")
    assert [alert.monitor for alert in Alerts(world.store).firing()] == ["hourly"]

    world.store.replace_spec(world.spec(other={"every": "30d"}))

    wait_until(lambda: not Alerts(world.store).firing(), SECONDS, "the alert is over")
    (alert,) = Alerts(world.store).recent()
    assert mentions(alert.detail["lines"][0], "removed")


def test_manual_windows_replace_no_scheduled_window(world):
    world.endpoint()
    world.rows(NOON)
    by_hand = [
        (NOON, NOON + HOUR / 2),
        (NOON + HOUR, NOON + 2 * HOUR),
        (NOON + HOUR / 2, NOON + 3 * HOUR / 2),
    ]
    for start, end in by_hand:
        window = world.monitors.add("flights", "hourly", start, end, by_hand=True)
        world.monitors.update(replace(window, state="judged", verdict="drift", log_rows=1000))
    world.now = DUE
    world.judge = lambda asked: "drift"

    over = world.start()
    world.wait_for(4)
    over.set()

    assert [alert.monitor for alert in Alerts(world.store).firing()] == ["hourly"]
    (judged,) = world.monitors.windows(by_hand=False)
    assert (judged.end, judged.revision) == (NOON + HOUR, 2)

    world.rows(NOON, rows=2)
    world.start()
    world.wait_for(5)

    assert [window.revision for window in world.monitors.windows(by_hand=False)] == [2, 3]


def test_monitor_removed_while_judged_is_silent(world):
    world.due(hourly={}, other={"every": "30d"})

    def judge(asked):
        world.store.replace_spec(world.spec(other={"every": "30d"}))
        return "drift"

    world.judge = judge
    world.start()
    world.wait_for(1, "hourly")

    assert Alerts(world.store).firing() == []
