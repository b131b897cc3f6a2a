"""Monitors in the store: a window exists once, is judged once, and is not written under
a lost lease.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Barrier

import pytest

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts, Silences
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, MonitorState

DAY = timedelta(days=1)
START = datetime(2026, 11, 20, tzinfo=UTC)
AT_ONCE = 6


def at_once(call):
    """Return the results of the same call in several concurrent threads, each with its
    own connection.
    """
    begun = Barrier(AT_ONCE)

    def begin(_):
        begun.wait()
        return call()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(begin, range(AT_ONCE)))


@pytest.fixture
def store(store_url):
    opened = open_store(store_url)
    yield opened
    opened.close()


@pytest.fixture
def monitors(store):
    return Monitors(store)


@pytest.fixture
def add(monitors, name):
    """Return a function that adds a window of `daily`, by default of a day."""

    def add_window(day=0, length=1, **options):
        start = START + day * DAY
        return monitors.add(name, "daily", start, start + length * DAY, **options)

    return add_window


@pytest.fixture
def judge(monitors, add):
    """Return a function that adds a window and judges it with a number as evidence."""

    def judge_window(number, *when, **options):
        window = replace(add(*when, **options), state="judged", evidence={"number": number})
        assert monitors.update(window)

    return judge_window


def test_judged_window_is_immutable(monitors, add, name):
    window = replace(
        add(),
        state="judged",
        verdict="drift",
        rows=5_000_000_000,
        figures={"p": 0.5, "nan": float("nan")},
    )

    judged = monitors.update(replace(window, reason="a\0b"))

    assert judged.verdict == "drift"
    assert judged.rows == 5_000_000_000
    assert judged.reason == "a\ufffdb"
    assert judged.figures == {"p": 0.5, "nan": None}
    assert monitors.update(replace(window, verdict="no drift")) is None
    assert monitors.windows(name) == [judged]


def test_lost_lease_writes_no_window(store, monitors, add, name):
    window = replace(add(), state="judged")
    lost = store.acquire_lease(name, "first", 15)
    store.release_lease(lost)
    held = store.acquire_lease(name, "second", 15)

    assert monitors.update(window, lost) is None
    assert monitors.update(window, held) is not None


def test_windows_are_sorted_and_limited(monitors, add, name):
    for day in (2, 0, 1):
        add(day)

    def days(**selection):
        return [(window.start - START) // DAY for window in monitors.windows(name, **selection)]

    assert days() == [0, 1, 2]
    assert days(limit=2) == [1, 2]
    assert days(since=START + 2 * DAY) == [2]
    assert days(states=["judged"]) == []


def test_newest_windows_are_selected_per_monitor(monitors, add, name):
    for number in range(5):
        monitors.add(name, "busy", START + (9 + number) * DAY, START + (10 + number) * DAY)
        add(number)
    add(4)
    monitors.add(name, "removed", START, START + DAY)

    windows = monitors.newest_of_each(name, ["busy", "daily", "new"], 2)

    assert {
        (window.monitor, (window.start - START) // DAY, window.revision) for window in windows
    } == {
        ("busy", 12, 1),
        ("busy", 13, 1),
        ("daily", 3, 1),
        ("daily", 4, 1),
        ("daily", 4, 2),
    }


def test_pause_is_recorded_with_its_actor(store, monitors, name):
    assert monitors.pause(name, "daily", actor="ada@laptop", why="a known fault")
    assert not monitors.pause(name, "daily", actor="bob@laptop")
    assert monitors.state(name, "daily") == MonitorState(
        name, "daily", paused=True, paused_by="ada@laptop"
    )
    assert monitors.pause(name, "daily", paused=False, actor="bob@laptop")

    assert not monitors.state(name, "daily").paused
    assert [(event.action, event.actor, event.why) for event in store.events(name)] == [
        ("monitor.pause", "ada@laptop", "a known fault"),
        ("monitor.resume", "bob@laptop", ""),
    ]


def test_accepted_baseline_is_merged_and_recorded(store, monitors, name):
    first = "2026-11-01T00:00:00+00:00"
    second = "2026-11-20T00:00:00+00:00"

    monitors.accept(name, "daily", {"x": first, "y": first})
    monitors.accept(name, "daily", {"x": second}, "a new carrier")

    assert monitors.state(name, "daily").baseline == {"x": second, "y": first}
    *_, event = store.events(name)
    assert event.action == "monitor.accept"
    assert event.why == "a new carrier"
    assert event.detail["baseline"] == f"x since {second}"


def test_judged_windows_are_latest_scheduled_revisions(monitors, add, judge, name):
    judge(1)
    judge(2, by_hand=True)
    judge(3, 0, 0.5)
    judge(4, -0.5)
    judge(5, -2)
    judge(6, -800)
    judge(7, 1)
    add(-1)
    add(-2)  # This revision is not judged.

    def read(**options):
        windows = monitors.judged_windows((name, "daily"), DAY, "evidence", **options)
        return [window.evidence["number"] for window in windows]

    assert read(until=START + DAY) == [5, 2]
    assert read() == [6, 5, 2, 7]
    assert read(until=START - 2 * DAY) == []
    assert read(until=START + 3 * DAY / 2, aligned_to=START + DAY / 2) == [4]


def test_revisions_do_not_displace_other_windows(monitors, judge, name, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.core.store.monitor_tables._MOST_PAST", 2)
    for day in (0, 1, 2):
        judge(1, day)
        judge(2, day)

    read = monitors.judged_windows((name, "daily"), DAY, "evidence")

    assert [(row.start, row.evidence) for row in read] == [
        (START + DAY, {"number": 2}),
        (START + 2 * DAY, {"number": 2}),
    ]


def test_recreated_endpoint_inherits_nothing(store, monitors, add, name):
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))
    monitors.update_state(name, "daily", made_up_to=START, consecutive=2)
    monitors.update_state(name, "daily", note="3 windows are left out", note_kind="left_out")
    monitors.pause(name, "daily", actor="ada")
    Silences(store).add(name, "", 3650 * DAY)
    assert Alerts(store).add_once(Alert(f"{name}/drift", name, "daily", "firing", START, START))
    running = add()
    assert monitors.states(name) == [
        MonitorState(name, "daily", True, "ada", START, 2, "3 windows are left out", "left_out")
    ]

    store.remove_endpoint(name)
    assert monitors.update(replace(running, state="judged")) is None
    add()  # A user judges the captured rows.
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))

    assert monitors.states(name) == []
    assert monitors.windows(name) == []
    assert Silences(store).active(name) == []
    assert Alerts(store).firing(name) == []
    actions = [event.action for event in store.events(name)]
    assert actions == ["create", "monitor.pause", "silence", "delete", "create"]


@pytest.mark.parametrize("number", range(2))
def test_concurrent_writers_create_one_row(store, monitors, name, number):
    alerts = Alerts(store)
    now = store.now()
    notice = Alert(f"{name}/said", name, "daily", "said", now, now)
    firing = replace(notice, fingerprint=f"{name}/drift", state="firing")
    failed = AuditEvent(
        now, "controller", "retrain.failed", name, why="no labels", detail={"monitor": "daily"}
    )

    at_once(lambda: monitors.update_state(name, "daily", consecutive=2))
    paused = at_once(lambda: monitors.pause(name, "hourly"))
    announced = at_once(lambda: alerts.add_once(notice))
    at_once(lambda: alerts.change(firing.fingerprint, lambda known: known or firing))
    at_once(lambda: store.record_unless_repeated(failed))

    assert [entry.monitor for entry in monitors.states(name)] == ["daily", "hourly"]
    assert paused.count(True) == 1
    assert announced.count(None) == AT_ONCE - 1
    assert len(alerts.firing(name)) == 1
    assert [entry.action for entry in store.events(name)] == ["monitor.pause", "retrain.failed"]
