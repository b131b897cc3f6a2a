"""The maintenance of the log while the controller runs."""

import glob
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

from mlflow_deploy_plugin.core.spec.document import apply_config, new_endpoint
from mlflow_deploy_plugin.core.spec.types import bin_period
from mlflow_deploy_plugin.core.store.alerts import Alert, Alerts
from mlflow_deploy_plugin.core.store.holds import hold
from mlflow_deploy_plugin.core.store.leases import LeaseKeeper
from mlflow_deploy_plugin.core.store.tables import AlertRow
from mlflow_deploy_plugin.serve.inference_log.log_reader import open_log
from mlflow_deploy_plugin.serve.inference_log.maintenance import expire
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments
from mlflow_deploy_plugin.watch.monitors.maintenance import (
    RetainedWindows,
    maintain_logs,
    retained_windows,
)
from mlflow_deploy_plugin.watch.monitors.schedule import next_due_window
from tests.support.inference_log import ENDPOINT, LogWriter
from tests.support.monitors import HOUR, NOON, SECONDS
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


def test_windows_to_be_read_again_are_retained(world):
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
    retried = NOON - timedelta(days=40)
    monitors.add("flights", "retried", retried, retried + HOUR)
    world.now = now = NOON + timedelta(days=60)
    for name in ("pinned", "retried"):
        monitors.update_state("flights", name, made_up_to=now)
    endpoint = world.store.endpoint("flights")

    needed = {f"{window}" for window in retained_windows(monitors, endpoint, now).windows}

    assert needed == {
        "2026-01-01/2026-01-08",
        # The first window is from 2026-11-20 and is compared with two weeks.
        "2026-11-06/2027-01-19T12:00:00",
        "2026-10-11T12:00:00/2027-01-19T12:00:00",  # This window is not judged yet.
    }


def test_windows_waiting_for_labels_are_retained(world):
    world.endpoint(
        truth={"kind": "performance", "require": "accuracy>=0.8", "labels_within": "7d"},
        once_a_year={"schedule": "0 0 1 1 *"},
    )
    endpoint = world.store.endpoint("flights")
    world.now = now = NOON + timedelta(days=7, hours=51)
    state = world.monitors.state("flights", "truth")
    first = next_due_window(endpoint, state, now)
    assert first

    labels, yearly = sorted(
        retained_windows(world.monitors, endpoint, now).windows, key=lambda window: window.start
    )

    assert labels.start <= first.window.start == NOON
    # This is the maximum number of missed windows.
    assert yearly.start == now - timedelta(hours=100)


def test_rows_of_frozen_bins_outlive_the_retention(tmp_path):
    span = timedelta(days=3)
    times = [NOON + timedelta(hours=12 * number) for number in range(80)]
    LogWriter(tmp_path).write({"x": [0.0] * len(times), "_event_time": times})
    log = open_log(str(tmp_path))
    for day in range(4, 40):
        now = NOON + timedelta(days=day)
        history = Window(now - span, now)
        frozen = bin_period(log.hours(ENDPOINT)[0].start, now, span)
        needed = RetainedWindows([history], [history]).of(log, ENDPOINT)
        rows = log.hours(ENDPOINT, Window(*frozen))
        expire(log, ENDPOINT, now, timedelta(days=4), needed)
        assert bin_period(log.hours(ENDPOINT)[0].start, now, span) == frozen
        assert log.hours(ENDPOINT, Window(*frozen)) == rows
    assert len(log.hours(ENDPOINT)) < 40


@pytest.fixture
def kept_for_90_days(world):
    spec = apply_config(
        new_endpoint("flights", "models:/flight-delay/1"), {"capture.retention": "90d"}
    )
    world.store.add_endpoint("onnxserve", spec)
    return world


@pytest.mark.long
def test_files_are_deleted_and_compacted(kept_for_90_days, tmp_path, caplog):
    world = kept_for_90_days
    # Files that were just written are not maintained yet.
    world.now = datetime.now(UTC) + HOUR
    recent = world.now - timedelta(days=80)
    world.rows(world.now - timedelta(days=100), recent, recent)
    caplog.set_level("INFO")

    with kept_up(world):
        wait_until(lambda: len(files(tmp_path)) == 1, SECONDS, "one file is left")
        wait_until(lambda: mentions(caplog.text, "flights", "1 files", "capture.retention 90d"))


@pytest.mark.long
def test_rows_on_hold_are_retained(kept_for_90_days, tmp_path):
    world = kept_for_90_days
    world.rows(world.now - timedelta(days=100))
    hold(world.store, "flights", "case 7")
    old = world.now - timedelta(days=8)
    Alerts(world.store).add_once(Alert("over", "other", "hourly", "resolved", old, old))
    world.settings = world.settings.model_copy(update={"monitor_retention_days": 7})

    def alerts():
        with world.store.reading() as session:
            return [*session.scalars(select(AlertRow.fingerprint))]

    with kept_up(world):
        wait_until(lambda: alerts() == [], SECONDS, "the old alert is gone")
    assert len(files(tmp_path)) == 1
