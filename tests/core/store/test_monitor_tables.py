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
def name(request):
    """Return an endpoint name that no other test uses, because the PostgreSQL database
    is shared.
    """
    return f"e{abs(hash(request.node.name)) % 10**12}"


def test_a_window_is_there_once(store, name):
    monitors = Monitors(store)

    first = monitors.add(name, "daily", START, START + DAY)

    assert monitors.add(name, "daily", START, START + DAY).revision == 2
    assert monitors.add(name, "hourly", START, START + DAY).id != first.id
    assert [window.revision for window in monitors.windows(name, "daily")] == [1, 2]


def test_a_window_that_is_judged_stays_as_it_is(store, name):
    monitors = Monitors(store)
    added = monitors.add(name, "daily", START, START + DAY)
    window = replace(
        added,
        state="judged",
        verdict="drift",
        rows=5_000_000_000,
        figures={"p": 0.5, "nan": float("nan")},
    )

    judged = monitors.update(replace(window, reason="a\0b"))

    assert judged is not None
    assert judged.verdict == "drift"
    assert judged.rows == 5_000_000_000
    assert judged.reason == "a\ufffdb"
    assert judged.figures == {"p": 0.5, "nan": None}
    assert monitors.update(replace(window, verdict="no drift")) is None
    assert monitors.windows(name) == [judged]


def test_a_window_is_not_written_under_a_lost_lease(store, name):
    monitors = Monitors(store)
    window = replace(monitors.add(name, "daily", START, START + DAY), state="judged")
    lost = store.acquire_lease(name, "first", 15)
    assert lost is not None
    store.release_lease(lost)
    held = store.acquire_lease(name, "second", 15)

    assert monitors.update(window, lost) is None
    assert monitors.update(window, held) is not None


def test_windows_are_listed_oldest_first_and_a_limit_keeps_the_newest(store, name):
    monitors = Monitors(store)
    for days in (2, 0, 1):
        monitors.add(name, "daily", START + days * DAY, START + (days + 1) * DAY)

    assert [window.start for window in monitors.windows(name)] == [
        START,
        START + DAY,
        START + 2 * DAY,
    ]
    assert [window.start for window in monitors.windows(name, limit=2)] == [
        START + DAY,
        START + 2 * DAY,
    ]
    assert [window.start for window in monitors.windows(name, since=START + 2 * DAY)] == [
        START + 2 * DAY
    ]
    assert monitors.windows(name, states=["judged"]) == []


def test_a_busy_monitor_takes_nothing_from_the_newest_windows_of_another(store, name):
    monitors = Monitors(store)
    minute = timedelta(minutes=1)
    for number in range(5):
        monitors.add(
            name, "busy", START + 9 * DAY + number * minute, START + 9 * DAY + (number + 1) * minute
        )
        monitors.add(name, "daily", START + number * DAY, START + (number + 1) * DAY)
    monitors.add(name, "daily", START + 4 * DAY, START + 5 * DAY)
    monitors.add(name, "removed", START, START + DAY)

    windows = monitors.newest_of_each(name, ["busy", "daily", "new"], 2)

    assert [window.start for window in windows if window.monitor == "busy"] == [
        START + 9 * DAY + number * minute for number in (3, 4)
    ]
    assert [(window.start, window.revision) for window in windows if window.monitor == "daily"] == [
        (START + 3 * DAY, 1),
        (START + 4 * DAY, 1),
        (START + 4 * DAY, 2),
    ]
    assert len(windows) == 5


def test_a_pause_is_written_down_with_who_paused(store, name):
    monitors = Monitors(store)

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


def test_an_accepted_baseline_is_added_to_earlier_ones_and_written_down(store, name):
    monitors = Monitors(store)

    monitors.accept(
        name, "daily", {"x": "2026-11-01T00:00:00+00:00", "y": "2026-11-02T00:00:00+00:00"}
    )
    monitors.accept(name, "daily", {"x": "2026-11-20T00:00:00+00:00"}, "a new carrier")

    baseline = monitors.state(name, "daily").baseline
    assert baseline == {"x": "2026-11-20T00:00:00+00:00", "y": "2026-11-02T00:00:00+00:00"}
    *_, event = store.events(name)
    assert event.action == "monitor.accept"
    assert event.why == "a new carrier"
    assert event.detail["baseline"] == "x since 2026-11-20T00:00:00+00:00"


def test_judged_windows_are_those_of_the_schedule_in_their_last_revision(store, name):
    def judge(start, number, length=DAY, **more):
        window = Monitors(store).add(name, "daily", start, start + length, **more)
        assert Monitors(store).update(replace(window, state="judged", evidence={"number": number}))

    judge(START, 1)
    judge(START, 2, by_hand=True)
    judge(START, 3, DAY / 2)  # another length
    judge(START - DAY / 2, 4)  # another start
    judge(START - 2 * DAY, 5)
    judge(START - 800 * DAY, 6)
    judge(START + DAY, 7)
    Monitors(store).add(name, "daily", START - DAY, START)  # not judged
    # a revision that is not judged
    Monitors(store).add(name, "daily", START - 2 * DAY, START - DAY)

    def read(**given):
        windows = Monitors(store).judged_windows((name, "daily"), DAY, "evidence", **given)
        return [window.evidence["number"] for window in windows]

    assert read(until=START + DAY) == [5, 2]
    assert read() == [6, 5, 2, 7]
    assert read(until=START - 2 * DAY) == []
    assert read(until=START + 3 * DAY / 2, aligned_to=START + DAY / 2) == [4]


def test_revisions_of_a_window_do_not_displace_other_windows(store, name, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.core.store.monitor_tables._MOST_PAST", 2)
    monitors = Monitors(store)
    for day in (0, 1, 2):
        for revision in (1, 2, 3):
            window = monitors.add(name, "daily", START + day * DAY, START + (day + 1) * DAY)
            assert monitors.update(replace(window, state="judged", evidence={"number": revision}))

    read = monitors.judged_windows((name, "daily"), DAY, "evidence")

    assert [(row.start, row.evidence) for row in read] == [
        (START + day * DAY, {"number": 3}) for day in (1, 2)
    ]


def test_an_endpoint_that_is_made_anew_has_nothing_of_its_namesake(store, name):
    monitors = Monitors(store)
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))
    monitors.update_state(name, "daily", made_up_to=START, consecutive=2)
    monitors.update_state(name, "daily", note="3 windows are left out", note_kind="left_out")
    monitors.pause(name, "daily", actor="ada")
    Silences(store).add(name, "", timedelta(days=3650))
    firing = Alert(f"{name}/drift", name, "daily", "firing", START, START)
    assert Alerts(store).add_once(firing)
    running = monitors.add(name, "daily", START, START + DAY)
    assert monitors.states(name) == [
        MonitorState(name, "daily", True, "ada", START, 2, "3 windows are left out", "left_out")
    ]

    store.remove_endpoint(name)
    written = monitors.update(replace(running, state="judged"))
    monitors.add(name, "daily", START, START + DAY)  # A user judges the captured rows.
    store.add_endpoint("onnxserve", new_endpoint(name, "models:/X/1"))

    assert written is None
    assert monitors.states(name) == []
    assert monitors.windows(name) == []
    assert Silences(store).active(name) == []
    assert Alerts(store).firing(name) == []
    assert [event.action for event in store.events(name)] == [
        "create",
        "monitor.pause",
        "silence",
        "delete",
        "create",
    ]


@pytest.mark.parametrize("number", range(5))
def test_of_several_who_write_a_new_row_at_once_one_makes_it(store, name, number):
    monitors = Monitors(store)
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
