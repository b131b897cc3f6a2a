"""Metrics of monitors, alerts and retrainings for Prometheus, read from the store at
each scrape.

All controllers of a store return the same values. The time of the last success shows
whether a monitor has stopped.
"""

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mlflow_deploy_plugin.core.errors import StoreUnavailable
from mlflow_deploy_plugin.core.store.monitor_tables import (
    MonitorKey,
    Monitors,
    StoreCounts,
    read_counts,
)
from mlflow_deploy_plugin.core.store.store import Endpoint, Store
from mlflow_deploy_plugin.promote.rollouts.leadership import LEADS
from mlflow_deploy_plugin.serve.observability.metrics_port import serve
from mlflow_deploy_plugin.watch.result import ALARMS, UNDECIDED

_log = logging.getLogger(__name__)

STATES = ("ok", "changed", "alarm", *UNDECIDED, "failing", "paused", "waiting")
_SHARE = "share_of_drifted_columns"
_LOOKED_BACK = 20
"""The number of windows that are searched for the newest drift share: a window without
rows has no drift share.
"""
_PATIENCE_SECONDS = 3.0
"""The seconds that a scrape waits for the store. By default, Prometheus stops waiting
after 10 seconds.
"""
_LONGEST_READING_SECONDS = 60.0
_MONITOR = ("endpoint", "monitor")
_METRICS = {
    "onnxserve_drift_share": ("Share of drifted columns in the last judged window.", _MONITOR),
    "onnxserve_monitor_metric": ("A metric of the last judged window.", (*_MONITOR, "metric")),
    "onnxserve_monitor_state": ("1 for the current state of a monitor.", (*_MONITOR, "state")),
    "onnxserve_monitor_judged_until_timestamp_seconds": (
        "End of the newest judged window, in event time.",
        _MONITOR,
    ),
    "onnxserve_monitor_last_success_timestamp_seconds": (
        "Time at which a window was last judged.",
        _MONITOR,
    ),
    "onnxserve_monitor_windows": ("Judged windows.", (*_MONITOR, "verdict")),
    "onnxserve_monitor_failures": ("Failed attempts to judge a window.", _MONITOR),
    "onnxserve_alerts_firing": ("Alerts that are firing.", _MONITOR),
    "onnxserve_retrainings": ("Retrainings, by state.", (*_MONITOR, "state")),
}
_Families = dict[str, CounterMetricFamily | GaugeMetricFamily]
_COUNTERS = ("onnxserve_monitor_windows", "onnxserve_monitor_failures")


async def serve_metrics(store: Store, listener: socket.socket) -> None:
    """Answer scrapes of the metrics of a store."""
    registry = CollectorRegistry()
    registry.register(StoreMetrics(store))
    registry.register(LEADS)
    await serve(listener, partial(generate_latest, registry))


class _Reading:
    """A read of all metrics in a thread of its own.

    Attributes:
        answered: set when the store has answered the first query.
        ended: set when the read has succeeded or failed.
    """

    def __init__(self) -> None:
        self.answered = threading.Event()
        self.ended = threading.Event()
        self.has_failed = False
        self._began = time.monotonic()

    @property
    def is_up(self) -> bool:
        """Return True if the store has answered and the complete read has not exceeded
        `_LONGEST_READING_SECONDS`.
        """
        is_late = (
            not self.ended.is_set() and time.monotonic() - self._began > _LONGEST_READING_SECONDS
        )
        return self.answered.is_set() and not self.has_failed and not is_late


class StoreMetrics(Collector):
    """The metrics of a store, which are read by one thread.

    After `patience_seconds`, a scrape returns the previous values. `onnxserve_store_up`
    is 0 if the store is down.
    """

    def __init__(self, store: Store, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._store = store
        self._patience_seconds = patience_seconds
        self._reading: _Reading | None = None
        self._metrics: Sequence[Metric] = ()
        self._logged = ""

    def describe(self) -> Iterable[Metric]:
        return []  # The store is not read at registration, but by the first scrape.

    def collect(self) -> Iterator[Metric]:
        if self._reading is None or self._reading.ended.is_set():
            self._reading = _Reading()
            threading.Thread(
                target=self._read, args=(self._reading,), name="gauges", daemon=True
            ).start()
        reading = self._reading
        reading.ended.wait(self._patience_seconds)
        yield GaugeMetricFamily("onnxserve_store_up", "1 while the store answers.", reading.is_up)
        yield from self._metrics

    def _read(self, reading: _Reading) -> None:
        """Read the metrics and keep them for the scrapes. If the store is down, log the
        reason once and keep the previous values.
        """
        try:
            endpoints = self._store.endpoints()
            reading.answered.set()
            self._metrics = _read_metrics(self._store, endpoints)
            self._logged = ""
        except StoreUnavailable as error:
            reading.has_failed = True
            if self._logged != error.message:
                self._logged = error.message
                _log.warning(
                    "Prometheus receives the values of the previous read: %s",
                    error.message,
                )
        except Exception:  # noqa: BLE001 — `onnxserve_store_up` reports the failure
            reading.has_failed = True
            _log.exception("the metrics cannot be read")
        finally:
            reading.ended.set()


def _read_metrics(store: Store, endpoints: Sequence[Endpoint]) -> list[Metric]:
    """Return all metrics of the endpoints' monitors."""
    keys: list[MonitorKey] = []
    for endpoint in endpoints:
        keys += product([endpoint.name], endpoint.spec.monitors)
    paused = {(state.endpoint, state.monitor) for state in Monitors(store).states() if state.paused}
    counts = read_counts(store, keys, _SHARE, _LOOKED_BACK)
    families: _Families = {}
    for metric, (text, labels) in _METRICS.items():
        family = CounterMetricFamily if metric in _COUNTERS else GaugeMetricFamily
        families[metric] = family(metric, text, labels=labels)
    for key in keys:
        judged = counts.judged.get(key)
        newest = counts.newest.get(key)
        # The state is the verdict of the last judged window, unless the last one fails.
        is_retried = newest is not None and newest.state != "judged" and newest.attempts > 0
        if key in paused:
            state = "paused"
        elif newest is not None and (newest.state == "failed" or is_retried):
            state = "failing"
        elif judged is None:
            state = "waiting"
        elif judged.outcome in ALARMS:
            state = "alarm"
        elif judged.outcome in ("changed", *UNDECIDED):
            state = judged.outcome
        else:
            state = "ok"
        for possible in STATES:
            families["onnxserve_monitor_state"].add_metric(
                (*key, possible), float(possible == state)
            )
        if judged is None:
            continue
        families["onnxserve_monitor_judged_until_timestamp_seconds"].add_metric(
            key, judged.end.timestamp()
        )
        for metric, value in judged.figures.items():
            if "/" not in metric and value is not None:  # Omit values per column or variant.
                families["onnxserve_monitor_metric"].add_metric((*key, metric), value)
    _add_counts(families, counts)
    return [*families.values()]


def _add_counts(families: _Families, counts: StoreCounts) -> None:
    """Add the figures that the store has counted for all monitors at once."""
    # Omit a removed monitor's last success, which would soon raise the alert for a
    # stopped monitor.
    last_success = {
        key: judged_at.timestamp()
        for key, judged_at in counts.last_judged.items()
        if key in counts.judged
    }
    for name, values in (
        ("onnxserve_monitor_windows", counts.judged_windows),
        ("onnxserve_monitor_failures", counts.failures),
        ("onnxserve_monitor_last_success_timestamp_seconds", last_success),
        ("onnxserve_drift_share", counts.figures),
        ("onnxserve_alerts_firing", counts.firing),
        ("onnxserve_retrainings", counts.retrainings),
    ):
        for labels, value in values.items():
            families[name].add_metric(labels, value)
