"""The maintenance of the log while the controller runs."""

import glob
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.holds import hold
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.tables import AlertRow
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.drift.references.load import rolling_windows
from mlflow_deploy_plugin.watch.monitors.maintenance import (
    maintain_log,
    maintain_logs,
    retained_windows,
)
from mlflow_deploy_plugin.watch.monitors.schedule import next_due_window
from mlflow_deploy_plugin.watch.result import WindowRequest
from tests.support.monitors import NOON, SECONDS
from tests.support.refusals import mentions
from tests.support.waiting import wait_until


def files(folder):
    """Return the files of the log. (`Path.rglob` raises if the maintenance removes a
    folder during the search.)
    """
    return glob.glob("inference_log/endpoint=flights/**/*.parquet", root_dir=folder, recursive=True)


@contextmanager
def kept_up(world):
    """Maintain the log repeatedly during the `with`."""
    lease = world.store.acquire_lease("upkeep", "the test", 15)
    over = threading.Event()
    assert lease is not None
    deployments = Deployments(world.store, world.settings, world.said.append)

    def work():
        with LeaseKeeper(world.store, lease) as keeper:
            maintain_logs(deployments, keeper, over, every_seconds=0.1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(SECONDS)


@pytest.mark.long
def test_the_many_files_of_an_hour_that_is_over_become_one(world, tmp_path):
    hour = datetime(2026, 11, 1, 12, tzinfo=UTC)
    world.endpoint()
    for _ in range(5):
        world.rows(hour)
    assert len(files(tmp_path)) == 5
    # Files that were just written are not maintained yet.
    world.now = datetime.now(UTC) + timedelta(hours=1)
    with kept_up(world):
        wait_until(lambda: len(files(tmp_path)) == 1, SECONDS, "one file is left")


@pytest.mark.long
def test_expired_alerts_are_deleted_from_the_store(world):
    world.endpoint()
    alerts = Alerts(world.store)
    alerts.add_once(Alert("long over", "flights", "hourly", "resolved", NOON, NOON))
    world.now = NOON + timedelta(days=5)
    alerts.add_once(Alert("over", "flights", "hourly", "resolved", world.now, world.now))
    world.now += timedelta(days=6)
    world.settings = world.settings.model_copy(update={"monitor_retention_days": 7})

    def kept():
        with world.store.reading() as session:
            return [*session.scalars(select(AlertRow.fingerprint))]

    with kept_up(world):
        wait_until(lambda: kept() == ["over"], SECONDS, "the old alert is gone")


def test_windows_that_a_monitor_will_read_again_are_retained(world):
    world.endpoint(
        pinned={"reference": "window:2026-01-01/7d"},
        weekly={
            "every": "1d",
            "schedule": "0 6 * * 1",
            "reference": "rolling:7d",
            "false_alarm_rate": "0.5",
        },
        retried={},
    )
    monitors = world.monitors
    begun = NOON
    monitors.add(
        "flights", "retried", begun - timedelta(days=40), begun - timedelta(days=40, hours=-1)
    )
    world.now = now = NOON + timedelta(days=60)
    for name in ("pinned", "retried"):
        monitors.update_state("flights", name, made_up_to=now)
    endpoint = world.store.endpoint("flights")
    assert endpoint is not None

    needed = {f"{window}" for window in retained_windows(monitors, endpoint, now).windows}

    assert needed == {
        "2026-01-01/2026-01-08",
        # The first window is from 2026-11-20 and is compared with two weeks.
        "2026-11-06/2027-01-19T12:00:00",
        "2026-10-11T12:00:00/2027-01-19T12:00:00",  # This window is not judged yet.
    }


def test_windows_waiting_for_labels_are_retained_with_those_to_catch_up(world):
    world.endpoint(
        truth={"kind": "performance", "require": "accuracy>=0.8", "labels_within": "7d"},
        once_a_year={"schedule": "0 0 1 1 *"},
    )
    endpoint = world.store.endpoint("flights")
    assert endpoint is not None
    world.now = now = NOON + timedelta(days=7, hours=51)
    state = world.monitors.state("flights", "truth")
    first = next_due_window(endpoint, state, now)
    assert first is not None

    labels, yearly = sorted(
        retained_windows(world.monitors, endpoint, now).windows, key=lambda window: window.start
    )

    assert labels.start <= first.window.start == NOON
    # This is the maximum number of missed windows.
    assert yearly.start == now - timedelta(hours=100)


@pytest.mark.long
@pytest.mark.parametrize("first_hour", [0, 6])
def test_the_bins_of_a_rolling_reference_stay_while_rows_go_for_their_age(world, first_hour):
    # These settings read five days.
    spec = {"every": "1d", "reference": "rolling:1d", "false_alarm_rate": "0.5"}
    world.endpoint(daily=spec)
    endpoint = world.store.endpoint("flights")
    assert endpoint is not None
    day = datetime(2026, 11, 20, tzinfo=UTC)
    frozen = set()
    oldest = []
    for _ in range(45):
        world.rows(day + timedelta(hours=first_hour))
        window = Window(day, day + timedelta(days=1))
        day = world.now = window.end
        request = WindowRequest(
            "flights", "daily", endpoint.spec.monitors["daily"], window, 1, world.settings
        )
        if window.start >= NOON + timedelta(days=5):
            frozen.add(str(rolling_windows(request, "flight-delay", "1")[0].sampled))
        world.monitors.update_state("flights", "daily", made_up_to=day)
        needed = retained_windows(world.monitors, endpoint, day)
        maintain_log(world.settings, "flights", day, "7d", needed)
        oldest.append(day - request.log.hours("flights")[0].start)

    assert len(frozen) <= 5  # eras of 20 days
    assert oldest[-1] < timedelta(days=25)


@pytest.mark.long
def test_rows_older_than_the_retention_are_deleted_and_logged(world, tmp_path, caplog):
    spec = apply_config(
        new_endpoint("flights", "models:/flight-delay/1"), {"capture.retention": "90d"}
    )
    world.store.add_endpoint("onnxserve", spec)
    world.rows(world.now - timedelta(days=100), world.now - timedelta(days=80))
    caplog.set_level("INFO")

    with kept_up(world):
        wait_until(lambda: len(files(tmp_path)) == 1, SECONDS, "one file is left")
        wait_until(
            lambda: mentions(caplog.text, "capture.retention 90d", "deleted"), SECONDS, "it is said"
        )
    assert mentions(caplog.text, "flights", "1 files")


@pytest.mark.long
def test_rows_on_hold_are_retained(world, tmp_path):
    spec = apply_config(
        new_endpoint("flights", "models:/flight-delay/1"), {"capture.retention": "90d"}
    )
    world.store.add_endpoint("onnxserve", spec)
    world.rows(world.now - timedelta(days=100))
    hold(world.store, "flights", "case 7")
    held_files = files(tmp_path)
    old = world.now - timedelta(days=8)
    Alerts(world.store).add_once(Alert("over", "other", "hourly", "resolved", old, old))
    world.settings = world.settings.model_copy(update={"monitor_retention_days": 7})

    def alerts():
        with world.store.reading() as session:
            return [*session.scalars(select(AlertRow.fingerprint))]

    with kept_up(world):
        wait_until(lambda: alerts() == [], SECONDS, "the old alert is gone")
    assert len(held_files) == 1
    assert len(files(tmp_path)) == 1
