"""Old windows and alerts are deleted from the store, except pending windows and firing
alerts.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, event, text

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.core.store import expiry
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.expiry import Expired, expire
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors, read_counts
from tests.support.clocks import Clock
from tests.support.waiting import wait_until

START = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
YEAR = timedelta(days=365)


@pytest.fixture
def clock():
    return Clock(START)


@pytest.fixture
def store(store_url, clock):
    opened = open_store(store_url, clock)
    # The command deletes in the whole store, and the PostgreSQL store is shared.
    with opened.transaction() as session:
        for table in ("endpoints", "monitors", "monitor_windows", "alerts"):
            session.execute(text(f"DELETE FROM onnxserve_{table}"))
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Keep three windows per monitor and delete four rows per transaction, so that
    tests need few rows.
    """
    monkeypatch.setattr(expiry, "KEPT_WINDOWS", 3)
    monkeypatch.setattr(expiry, "_AT_ONCE", 4)


def judge(store, clock, hours, verdict="no drift", *, by_hand=False):
    """Judge the windows of these hours of the monitor `hourly`, each at its end."""
    monitors = Monitors(store)
    for hour in hours:
        clock.now = START + (hour + 1) * HOUR
        window = monitors.add("flights", "hourly", START + hour * HOUR, clock.now, by_hand=by_hand)
        monitors.update(replace(window, state="judged", verdict=verdict))


def expire_later(store, clock):
    """Expire what is older than 30 days, after a year."""
    clock.now = START + YEAR
    return expire(store, 30 * DAY)


def hours(store, *, by_hand=False):
    return [
        (window.start - START) // HOUR
        for window in Monitors(store).windows("flights", by_hand=by_hand)
    ]


def test_newest_windows_are_kept(store, clock):
    judge(store, clock, range(3))

    assert expire_later(store, clock) == Expired()
    assert expire(store, timedelta(days=999_999)) == Expired()


def test_manual_and_scheduled_windows_are_kept_separately(store, clock):
    judge(store, clock, range(5))
    judge(store, clock, range(10, 15), by_hand=True)

    assert expire_later(store, clock).windows == 4
    assert hours(store) == [2, 3, 4]
    assert hours(store, by_hand=True) == [12, 13, 14]


def test_pending_window_stays_and_failed_one_expires(store, clock):
    monitors = Monitors(store)
    waiting, given_up = (
        monitors.add("flights", "hourly", START + n * HOUR, START + (n + 1) * HOUR) for n in (0, 1)
    )
    monitors.update(replace(given_up, state="failed", attempts=3))
    judge(store, clock, range(2, 4))

    assert expire_later(store, clock).windows == 1
    assert hours(store) == [waiting.revision - 1, 2, 3]


def test_age_of_window_is_from_its_verdict(store, clock):
    old = Monitors(store).add("flights", "hourly", START, START + HOUR)
    judge(store, clock, range(1, 5))
    clock.now = START + YEAR
    Monitors(store).update(replace(old, state="judged", verdict="drift"))

    assert expire(store, 30 * DAY).windows == 1
    assert hours(store) == [0, 2, 3, 4]


def test_counters_include_expired_windows(store, clock):
    spec = new_endpoint("flights", "models:/m/1", {"monitors.hourly.kind": "drift"})
    store.add_endpoint("onnxserve", spec)
    monitors = Monitors(store)
    key = ("flights", "hourly")
    monitors.update_state(*key, consecutive=0)
    failed = monitors.add(*key, START, START + HOUR)
    monitors.update(replace(failed, state="failed", attempts=5))
    judge(store, clock, range(1, 10))
    judge(store, clock, range(10, 15), "drift")
    judge(store, clock, range(20, 30), by_hand=True)
    before = read_counts(store, [key], "rows", 20)
    clock.now = START + YEAR

    for keep in (364 * DAY + 16 * HOUR, 30 * DAY):
        assert expire(store, keep).windows > 0
        after = read_counts(store, [key], "rows", 20)
        assert (
            after.judged_windows
            == before.judged_windows
            == {(*key, "no drift"): 9, (*key, "drift"): 5}
        )
        assert after.failures == before.failures == {key: 5}
        assert after.last_judged == before.last_judged


def test_windows_of_removed_monitor_expire(store, clock):
    monitors = Monitors(store)
    judge(store, clock, range(10))
    monitors.forget("flights", "hourly")

    assert expire_later(store, clock).windows == 7


def test_old_ended_alerts_expire(store, clock):
    alerts = Alerts(store)
    for number in range(9):
        alerts.add_once(Alert(f"said {number}", "flights", "hourly", "said", START, START))
    alerts.add_once(Alert("over", "flights", "hourly", "resolved", START, START + YEAR))
    alerts.add_once(Alert("fires", "flights", "hourly", "firing", START, START))

    assert expire_later(store, clock) == Expired(alerts=9)
    assert [alert.fingerprint for alert in alerts.recent()] == ["over", "fires"]


def test_expiry_deletes_in_batches_and_can_stop(store, clock):
    judge(store, clock, range(21))
    clock.now = START + YEAR
    answers = iter([True, True, False, False])
    deletions = []

    def note(connection, cursor, statement, *rest):
        if statement.startswith("DELETE"):
            deletions.append(cursor.rowcount)

    event.listen(Engine, "after_cursor_execute", note)
    try:
        assert expire(store, 30 * DAY, goes_on=lambda: next(answers)) == Expired(windows=8)
    finally:
        event.remove(Engine, "after_cursor_execute", note)
    assert deletions == [4, 4]
    assert hours(store)[0] == 8


@pytest.mark.parametrize(
    "database_url", [pytest.param("postgresql", marks=pytest.mark.postgresql)], indirect=True
)
def test_endpoint_is_deleted_during_expiry(store, clock):
    store.add_endpoint(
        "onnxserve", new_endpoint("flights", "models:/m/1", {"monitors.hourly.kind": "drift"})
    )
    Monitors(store).update_state("flights", "hourly", consecutive=0)
    judge(store, clock, range(7))
    clock.now = START + YEAR

    def waits():
        with store.transaction() as session:
            return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

    with ThreadPoolExecutor(1) as pool:
        deleted = []

        def delete_meanwhile(connection, cursor, statement, *rest):
            if (
                "onnxserve_monitor_windows" in statement
                and statement.endswith("SKIP LOCKED")
                and not deleted
            ):
                deleted.append(pool.submit(store.remove_endpoint, "flights"))
                wait_until(waits, what="the deletion waits for the windows")

        event.listen(Engine, "after_cursor_execute", delete_meanwhile)
        try:
            assert expire(store, 30 * DAY).windows == 4
        finally:
            event.remove(Engine, "after_cursor_execute", delete_meanwhile)
        assert deleted[0].result(20)
    assert Monitors(store).windows() == []
