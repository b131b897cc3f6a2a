"""The metrics of a store, read over HTTP with Prometheus's parser."""

import re
import socket
import struct
import threading
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import requests
from anyio.from_thread import start_blocking_portal
from prometheus_client.parser import text_string_to_metric_families

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.parts import EndpointSpec
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.monitor_tables import Monitors
from mlflow_deploy_plugin.watch.alerts.record import record_failure
from mlflow_deploy_plugin.watch.controller.prometheus import StoreMetrics, serve_metrics
from tests.support.services.postgresql import postgresql_server
from tests.support.waiting import wait_until

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FIRST = datetime(2013, 7, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def store_url(request, tmp_path):
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with postgresql_server() as url:
            yield url


@pytest.fixture
def store(store_url):
    opened = open_store(store_url, lambda: NOW)
    monitors: dict[str, Any] = {
        name: {} for name in ("daily", "hourly", "hits", "new", "off", "broken")
    }
    document = {
        "name": "flights",
        "variants": {"flights": {"model": "models:/m/1"}},
        "monitors": monitors,
    }
    opened.add_endpoint("onnxserve", EndpointSpec.model_validate(document))
    yield opened
    opened.close()


@pytest.fixture
def address(store):
    """The address of the metrics of the store."""
    with socket.create_server(("127.0.0.1", 0)) as listener, start_blocking_portal() as portal:
        served = portal.start_task_soon(serve_metrics, store, listener)
        yield listener.getsockname()
        served.cancel()


@pytest.fixture
def read(address):
    """Return a function that returns the current values of all metrics by their
    labels.
    """

    def ask():
        text = requests.get("http://{}:{}/metrics".format(*address), timeout=30).text
        return {
            (
                sample.name,
                *(value for key, value in sorted(sample.labels.items()) if key != "endpoint"),
            ): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    return ask


def test_metrics_show_monitors_windows_and_alerts(store, read):
    monitors = Monitors(store)
    figures = {"share_of_drifted_columns": 0.4, "rows": 75.0, "drift_score/x": 3.0}
    windows: list[tuple[str, int, dict[str, Any]]] = [
        ("daily", 0, {"verdict": "no drift", "figures": figures | {"rows": 1.0}}),
        ("daily", 1, {"verdict": "drift", "figures": figures}),
        ("hourly", 0, {"verdict": "not judged"}),
        ("hits", 0, {"verdict": "cannot tell"}),
        ("broken", 0, {"state": "pending", "attempts": 3}),
    ]
    for name, day, fields in windows:
        window = monitors.add("flights", name, FIRST + day * DAY, FIRST + (day + 1) * DAY)
        monitors.update(replace(window, **{"state": "judged"} | fields))
    monitors.pause("flights", "off")
    record_failure(store, Settings(), "flights", "broken", "MLflow does not answer")

    gauges = read()

    def of(name, *labels):
        return gauges["onnxserve_" + name, *labels]

    assert of("drift_share", "daily") == 0.4
    assert ("onnxserve_drift_share", "hourly") not in gauges
    states = {
        labels[1:] for labels, value in gauges.items() if "monitor_state" in labels[0] and value
    }
    assert states == {
        ("daily", "alarm"),
        ("hourly", "not judged"),
        ("hits", "cannot tell"),
        ("new", "waiting"),
        ("off", "paused"),
        ("broken", "failing"),
    }
    metrics = {labels[1] for labels in gauges if labels[0] == "onnxserve_monitor_metric"}
    assert metrics == {"share_of_drifted_columns", "rows"}
    assert of("monitor_metric", "rows", "daily") == 75
    assert of("monitor_state", "daily", "ok") == 0
    assert of("monitor_last_success_timestamp_seconds", "daily") == NOW.timestamp()
    until = of("monitor_judged_until_timestamp_seconds", "daily")
    assert until == (FIRST + 2 * DAY).timestamp()
    assert of("monitor_windows_total", "daily", "drift") == 1
    assert of("monitor_failures_total", "broken") == 3
    assert of("alerts_firing", "broken") == 1
    assert read() == gauges


def test_drift_share_stays_without_new_rows(store, read):
    monitors = Monitors(store)
    for day, share in enumerate((0.1, 0.3, None)):
        figures = {} if share is None else {"share_of_drifted_columns": share}
        window = monitors.add("flights", "daily", FIRST + day * DAY, FIRST + (day + 1) * DAY)
        monitors.update(replace(window, state="judged", verdict="not judged", figures=figures))
    monitors.add("flights", "daily", FIRST + 3 * DAY, FIRST + 4 * DAY)

    gauges = read()

    assert gauges["onnxserve_drift_share", "daily"] == 0.3
    assert gauges["onnxserve_monitor_state", "daily", "not judged"] == 1


def test_metrics_keep_values_while_the_store_fails(store, monkeypatch):
    go_on = threading.Event()

    def down(**how):
        raise StoreUnavailable("the database is gone")

    def silent(**how):
        go_on.wait(60)
        raise StoreUnavailable("no answer")

    reading = store.reading
    calls = []

    @contextmanager
    def slow(**how):
        calls.append(1)
        if len(calls) > 1:
            go_on.wait(60)
        with reading(**how) as session:
            yield session

    gauges = StoreMetrics(store, patience_seconds=0.1)

    # The store is up after its first answer, while other data is still being read.
    def read_whole():
        read = values(gauges)
        if read["onnxserve_store_up"] and len(read) > 1:
            return read
        return {}

    read_at_first = wait_until(read_whole, 30, "it is read")
    for answer in (down, silent):
        with monkeypatch.context() as patched:
            patched.setattr(store, "reading", answer)
            silenced = read_at_first | {"onnxserve_store_up": 0}
            # The first read may still be running.
            wait_until(lambda: values(gauges) == silenced, 30, "it is said")  # noqa: B023
            assert values(gauges) == silenced

    go_on.set()
    wait_until(lambda: values(gauges) == read_at_first, 30, "it is read again")
    go_on.clear()
    monkeypatch.setattr(store, "reading", slow)
    wait_until(
        lambda: values(gauges) == read_at_first, 30, "a store that answers and is slow is up"
    )
    go_on.set()


def values(gauges):
    """Return the values by metric, or by metric and labels."""
    samples = list(chain.from_iterable(metric.samples for metric in gauges.collect()))
    return {
        (reading.name, *reading.labels.values()) if reading.labels else reading.name: reading.value
        for reading in samples
    }


@pytest.mark.parametrize("sent", [b"", b"GET /metr", b"GET /metrics HTTP/1.1\r\n\r\n"])
def test_aborted_connection_writes_no_traceback(address, capfd, caplog, sent):
    for _ in range(5):
        with socket.create_connection(address, 20) as client:
            client.sendall(sent)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert requests.get("http://{}:{}/metrics".format(*address), timeout=20).ok
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_guide_and_rules_match_the_served_metrics(store, read):
    root = Path(__file__).parents[3]
    documented = set(
        re.findall(r"\| `(onnxserve_[a-z_]+)", (root / "docs" / "alerts.md").read_text())
    )
    window = Monitors(store).add("flights", "daily", FIRST, FIRST + DAY)
    figures = {"share_of_drifted_columns": 0.5}
    Monitors(store).update(replace(window, state="judged", verdict="drift", figures=figures))
    record_failure(store, Settings(), "flights", "daily", "MLflow does not answer")

    served = {labels[0] for labels in read()}

    assert served == documented - {"onnxserve_retrainings"}
    rules = (root / "docker" / "prometheus" / "onnxserve.rules.yaml").read_text()
    assert (
        set(re.findall(r"onnxserve_(?:monitor|drift|alerts|store|retrainings)_?[a-z_]*", rules))
        <= documented
    )
