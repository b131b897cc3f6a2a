"""The scheduler on a real store and log with a simulated clock: the judged windows,
their order, and gaps.
"""

import threading
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError, RegistryUnavailable
from mlflow_deploy_plugin.core.processes.worker import ProcessEnded
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.core.store.tables import LeaseRow
from mlflow_deploy_plugin.serve.inference_log.storage import FAILURES
from mlflow_deploy_plugin.watch.monitors.evaluation import count_rows
from mlflow_deploy_plugin.watch.monitors.scheduler import lease_name
from tests.support.inference_log import LogWriter
from tests.support.monitors import DUE, HOUR, NOON, SECONDS
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


def test_a_window_is_judged_once_its_grace_has_passed_and_its_outcome_is_in_the_store(world):
    world.endpoint()
    world.rows(NOON)
    world.now = NOON + HOUR + timedelta(minutes=4)
    world.start()
    assert world.monitors.windows() == []

    world.now += timedelta(minutes=2)
    (window,) = world.wait_for(1)

    assert window.start == NOON
    assert window.end == NOON + HOUR
    assert window.revision == 1
    assert window.verdict == "no drift"
    assert window.rows == 3
    assert window.log_rows == 3
    assert window.run_id == "run-1"
    assert world.monitors.state("flights", "hourly").made_up_to == NOON + HOUR
    wait_until(lambda: world.said, SECONDS, "it is said")
    assert world.said == [
        "flights: monitor hourly 2026-11-20T12:00:00/2026-11-20T13:00:00: no drift; run run-1"
    ]


def test_missed_windows_are_made_up_oldest_first_and_one_without_rows_costs_nothing(world):
    world.endpoint()
    world.rows(NOON, NOON + 2 * HOUR, NOON + 3 * HOUR)
    world.now = NOON + 5 * HOUR

    world.start()
    windows = world.wait_for(4)

    assert [request.window.start for request in world.asked] == [
        NOON,
        NOON + 2 * HOUR,
        NOON + 3 * HOUR,
    ]
    assert [window.verdict for window in windows] == [
        "no drift",
        "not judged",
        "no drift",
        "no drift",
    ]
    assert windows[1].reason.startswith("the window has no rows")
    assert windows[1].run_id == ""


def test_a_short_window_without_rows_in_an_hour_that_has_some_costs_no_run(world):
    world.endpoint(short={"every": "10m"})
    world.rows(NOON)
    world.now = NOON + timedelta(minutes=27)

    world.start()
    windows = world.wait_for(2)

    assert [request.window.start for request in world.asked] == [NOON]
    assert windows[1].reason.startswith("the window has no rows")
    assert windows[1].run_id == ""


def test_a_service_level_is_judged_where_every_request_failed(world):
    world.endpoint(level={"kind": "service_level", "require": "error_rate<=1%"})
    LogWriter(Path(world.settings.inference_log) / FAILURES).write({"_event_time": [NOON] * 3})
    world.now = NOON + timedelta(hours=1, minutes=7)

    world.start()
    (window,) = world.wait_for(1)

    assert window.verdict == "no drift"  # These values are from the test's judge.
    assert window.log_rows == 3


def test_long_backlog_is_limited_to_the_newest_windows_and_notes_the_skipped_ones(world):
    world.endpoint()
    world.now = NOON + 33 * HOUR

    world.start(max_catch_up=3)
    windows = world.wait_for(3)

    assert [window.start for window in windows] == [
        NOON + number * HOUR for number in range(29, 32)
    ]
    note = world.monitors.state("flights", "hourly").note
    assert note.startswith("29 windows from 2026-11-20T12:00 to 2026-11-21T17:00 were skipped")
    assert note.endswith(
        "onnxserve monitor backfill flights hourly --from 2026-11-20T12:00 --to 2026-11-21T17:00"
    )


def test_a_window_waits_for_the_slowest_agent(world):
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


def test_an_agent_that_is_silent_for_an_hour_is_passed_over_with_a_note(world):
    world.endpoint()
    world.rows(NOON)
    world.watermark(NOON)
    world.now = DUE

    world.start()
    (window,) = world.wait_for(1)

    assert mentions(window.reason, "agent one", "2026-11-20 12:00:00 UTC")


def test_a_failing_monitor_is_tried_again_given_up_and_harms_no_other(world):
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
        assert window.not_before is not None
        pauses.append((window.not_before - world.now).total_seconds())
        world.now = window.not_before
    (failed,) = world.wait_for(1, "broken", "failed")
    assert pauses == [15, 30, 60, 120]
    assert failed.attempts == 5
    assert [alert.monitor for alert in Alerts(world.store).firing("flights")] == ["broken"]

    world.now = DUE + HOUR
    assert world.wait_for(1, "broken")[-1].start == NOON + HOUR


def test_where_mlflow_is_down_a_window_is_tried_until_it_is_back(world):
    is_down = True

    def judge(asked):
        if is_down:
            raise RegistryUnavailable("MLflow does not answer")
        return "drift"

    world.judge = judge
    world.due()
    world.start()
    for attempts in range(1, 9):
        window = world.wait_for_attempt(attempts)
        assert window.not_before is not None
        world.now = window.not_before

    is_down = False
    world.now += HOUR

    assert world.wait_for(1)[0].verdict == "drift"


def test_a_monitor_that_takes_long_holds_up_no_other(world):
    may_end = threading.Event()

    def judge(asked):
        if asked.monitor == "slow":
            may_end.wait(SECONDS)
        return "no drift"

    world.judge = judge
    world.endpoint(slow={}, a={}, b={})
    world.rows(NOON, NOON + HOUR)
    world.now = DUE + HOUR
    world.start()

    assert len(world.wait_for(2, "a")) == len(world.wait_for(2, "b")) == 2
    running = [(NOON, "running")]
    wait_until(
        lambda: (
            [(window.start, window.state) for window in world.monitors.windows(monitor="slow")]
            == running
        ),
        what="it is judged",
    )
    may_end.set()
    world.wait_for(2, "slow")


def test_rows_that_come_later_make_the_next_revision(world):
    world.due()
    world.start()
    world.wait_for(1)
    world.end()

    world.rows(NOON, rows=2)
    world.start()  # The scheduler searches for late rows at its start and then every hour.
    first, second = world.wait_for(2)

    assert first.revision == 1
    assert first.log_rows == 3
    assert second.revision == 2
    assert second.log_rows == 5
    assert [request.revision for request in world.asked] == [1, 2]


def test_files_that_change_without_new_rows_change_nothing(world):
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


def test_a_paused_monitor_is_left_alone_and_makes_up_for_it_afterwards(world):
    world.due(paused={}, other={})
    world.monitors.pause("flights", "paused")
    world.start()
    world.wait_for(1, "other")
    assert world.monitors.windows(monitor="paused") == []

    world.monitors.pause("flights", "paused", paused=False)

    world.wait_for(1, "paused")


def test_windows_of_a_monitor_that_is_taken_away_meanwhile_are_closed(world):
    def judge(asked):
        raise OnnxserveError("not now")

    world.judge = judge
    world.due()
    world.start()
    wait_until(lambda: world.monitors.windows(states=("pending",)) and world.asked, SECONDS)

    world.store.replace_spec(world.spec(daily={"every": "1d"}))

    (window,) = world.wait_for(1, state="failed")
    assert mentions(window.reason, "monitor", "deleted")


def test_a_monitor_that_is_changed_is_judged_as_it_stands_then(world):
    world.endpoint()
    world.rows(NOON, NOON + HOUR)
    world.now = DUE
    world.start()
    world.wait_for(1)

    world.store.replace_spec(world.spec(hourly={"min_rows": 7, "every": "30m"}))
    world.now += HOUR
    windows = world.wait_for(3)

    assert world.asked[-1].spec.min_rows == 7
    assert [window.end - window.start for window in windows] == [HOUR, HOUR / 2, HOUR / 2]


def test_unknown_time_zone_is_logged_once_and_does_not_stop_other_monitors(world):
    world.due(wrong={"schedule": "0 6 * * *", "time_zone": "Nowhere/Near"}, other={})
    world.start()
    world.wait_for(1, "other")

    state = wait_until(lambda: world.monitors.state("flights", "wrong").note, SECONDS)

    assert state.startswith("cannot be run: time_zone 'Nowhere/Near' is not known")
    assert sum("Nowhere" in line for line in world.said) == 1


@pytest.mark.parametrize(
    ("created_at", "ahead", "judged_too_early"),
    [
        (NOON, NOON + 3 * HOUR, 2),
        (NOON, NOON + 50 * HOUR, 2),
        (NOON + 48 * HOUR, NOON + 50 * HOUR, 1),
    ],
    ids=["a little", "so far that windows were left out", "already when the endpoint was created"],
)
def test_where_the_clock_has_jumped_ahead_and_back_each_window_is_judged_in_its_time(
    world, created_at, ahead, judged_too_early
):
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

    assert judged.start == NOON
    assert judged.revision == 1
    assert judged.verdict == "no drift"
    assert world.monitors.state("flights", "hourly").note == ""


@pytest.mark.parametrize("undecided", ["not judged", "cannot tell"])
def test_alert_fires_only_after_the_required_consecutive_alarms(world, undecided):
    verdicts = iter(["drift", "no drift", "drift", undecided, "drift"])
    world.judge = lambda asked: next(verdicts)
    world.endpoint(hourly={"consecutive": 2})
    world.rows(*[NOON + number * HOUR for number in range(5)])
    world.now = NOON + 6 * HOUR - timedelta(minutes=50)

    world.start()
    world.wait_for(5)

    assert world.monitors.state("flights", "hourly").consecutive == 2
    assert [alert.monitor for alert in Alerts(world.store).firing("flights")] == ["hourly"]
    unconfirmed = [line for line in world.said if mentions(line, "1 of 2 consecutive windows")]
    assert [line.split()[3].split("/")[0] for line in unconfirmed] == [
        "2026-11-20T12:00:00",
        "2026-11-20T14:00:00",
    ]


def test_unreadable_log_raises_an_alert_and_is_retried(world):
    world.due()
    marks = world.folder / "inference_log" / "_watermarks"
    marks.parent.mkdir(parents=True, exist_ok=True)
    marks.write_text("no folder")
    passed = 0.0

    def monotonic():
        nonlocal passed
        passed += 30  # Simulate the seconds between two rounds.
        return passed

    world.start(monotonic=monotonic, lease_seconds=10_000)
    wait_until(lambda: Alerts(world.store).firing("flights"), SECONDS, "somebody is told")
    assert world.asked == []
    marks.unlink()

    world.wait_for(1)


def test_obstacle_to_judging_is_noted_until_resolved_and_logged_each_time(world):
    world.due()
    marks = world.folder / "inference_log" / "_watermarks"
    marks.parent.mkdir(parents=True, exist_ok=True)
    world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update_state("flights", "hourly", made_up_to=NOON + HOUR)
    marks.write_text("no folder")
    passed = 0.0

    def monotonic():
        nonlocal passed
        passed += 30  # Simulate the seconds between two rounds.
        return passed

    def said():
        return sum("cannot be run" in line for line in world.said)

    world.start(monotonic=monotonic, lease_seconds=10_000)
    wait_until(lambda: world.monitors.state("flights", "hourly").note, SECONDS, "it is noted")
    marks.unlink()
    world.wait_for(1)
    wait_until(lambda: not world.monitors.state("flights", "hourly").note, SECONDS, "it is over")
    assert said() == 1

    marks.write_text("no folder")
    world.now += HOUR
    wait_until(lambda: said() == 2, SECONDS, "it is said again")


def test_failed_search_for_late_rows_is_noted_and_does_not_stop_judging(world):
    world.due()
    world.start()
    world.wait_for(1)
    world.end()
    world.rows(NOON, rows=2)
    counted = [0.0]
    passed = 0.0
    reason = "a file of rows cannot be read"

    def count(asked):
        counted.append(passed)
        if reason:
            raise OnnxserveError(reason)
        return count_rows(asked)

    def monotonic():
        nonlocal passed
        passed += 400  # Simulate the seconds between two rounds.
        return passed

    def note():
        return world.monitors.state("flights", "hourly").note

    world.start(monotonic=monotonic, count=count, lease_seconds=1e7)
    wait_until(note, SECONDS, "it is noted")
    world.rows(NOON + HOUR)
    world.now += HOUR
    assert [window.start for window in world.wait_for(2)] == [NOON, NOON + HOUR]
    assert mentions(note(), "late data", "a file of rows")
    wait_until(lambda: Alerts(world.store).recent(), SECONDS, "somebody is told")
    assert all(later - earlier > 3600 for earlier, later in pairwise(counted[1:]))

    reason = ""
    world.wait_for(3)
    wait_until(lambda: not note(), SECONDS, "it is over")
    assert sum("cannot search for" in line for line in world.said) == 1


@pytest.mark.long
def test_two_hundred_monitors_of_fifty_endpoints_are_judged_once_each_then_cost_no_more_than_one(
    world, monkeypatch
):
    for number in range(50):
        world.endpoint(f"e{number}", a={}, b={}, c={}, d={})
        world.rows(NOON, endpoint=f"e{number}")
    world.now = DUE

    world.start()
    wait_until(lambda: len(world.asked) >= 200, 300, "all are judged")
    over = world.count_looks()
    wait_until(lambda: over() > 20, SECONDS, "nothing is left to do")
    assert len({(call.endpoint, call.monitor) for call in world.asked}) == len(world.asked) == 200

    reading = world.store.reading
    call = 0

    def counted():
        nonlocal call
        call += 1
        return reading()

    monkeypatch.setattr(world.store, "reading", counted)
    looked = world.count_looks()
    wait_until(lambda: looked() > 20, SECONDS, "it has looked again and again")
    assert call < 20 * looked()


def test_two_schedulers_never_judge_a_window_twice(world):
    world.endpoint(a={}, b={})
    world.rows(*[NOON + number * HOUR for number in range(6)])
    world.now = NOON + 7 * HOUR - timedelta(minutes=30)

    other = world.open_store()
    world.start()
    world.start(other)
    world.wait_for(12)

    assert (
        len(world.asked)
        == len({(request.monitor, request.window) for request in world.asked})
        == 12
    )
    world.end()
    other.close()


def test_window_begun_by_a_dead_controller_is_finished_by_the_next(world):
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


def test_a_window_that_kills_one_controller_after_the_other_is_given_up(world):
    world.due()
    begun = world.monitors.add("flights", "hourly", NOON, NOON + HOUR)
    world.monitors.update(replace(begun, state="running", attempts=4))

    world.start()

    (window,) = world.wait_for(1, state="failed")
    assert world.asked == []
    assert window.attempts == 5
    assert window.reason.startswith("the process that judged the window was killed")


def test_verdict_found_under_a_lost_lease_is_not_stored(world):
    def judge(asked):
        if len(world.asked) > 1:
            return "no drift"
        # Another process takes the lease after its full duration.
        with world.store.transaction() as session:
            lease = session.get(LeaseRow, lease_name("flights", "hourly"))
            assert lease is not None
            lease.token = lease.token + 1
            lease.holder = ""
        return "drift"

    world.judge = judge
    world.due()

    world.start(lease_seconds=3)

    (window,) = world.wait_for(1)
    assert window.verdict == "no drift"
    assert len(world.asked) == 2


def test_a_scheduler_that_ends_leaves_its_window_to_the_next(world):
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


def test_alert_is_resolved_when_its_monitor_is_removed(world):
    world.judge = lambda asked: "drift"
    world.due(hourly={}, other={"every": "30d"})
    world.start()
    world.wait_for(1, "hourly")
    assert [alert.monitor for alert in Alerts(world.store).firing()] == ["hourly"]

    world.store.replace_spec(world.spec(other={"every": "30d"}))

    wait_until(lambda: not Alerts(world.store).firing(), SECONDS, "the alert is over")
    (alert,) = Alerts(world.store).recent()
    assert alert.state == "resolved"
    assert alert.detail["lines"] == ["the monitor was removed"]
