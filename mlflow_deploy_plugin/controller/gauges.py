"""What Prometheus is told of monitors, alerts and retrainings: read from the store when it asks.

So every controller on a store answers the same, whoever does the work, and what a monitor does not do any more is seen:
its time of the last success stands still.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.monitoring.judgement import ALARMS
from mlflow_deploy_plugin.settings import load_settings
from mlflow_deploy_plugin.store.monitors import Monitors, MonitorWindow
from mlflow_deploy_plugin.store.store import Store
from mlflow_deploy_plugin.store.tables import AlertRow, MonitorWindowRow, RetrainingRow

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

STATES = ("ok", "alarm", "not judged", "failing", "paused", "waiting")
_SHARE = "share_of_drifted_columns"
_LOOKED_BACK = 20
"""Windows: those without rows have no share."""


def start_gauges(store: Store, port: int, host: str = "") -> "WSGIServer":
    """Answers Prometheus at `http://HOST:PORT/metrics` from a thread, for as long as the process lives.

    Args:
        host: default: ONNXSERVE_HOST.

    Raises:
        InvalidConfig: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(StoreGauges(store))
    try:
        server, _ = start_http_server(port, host or load_settings().host, registry)
    except OSError as error:
        raise InvalidConfig(f"--metrics-port {port}: {error.strerror or error}") from None
    return server


class StoreGauges(Collector):
    """The gauges of one store.

    Where the store does not answer, Prometheus gets an error and marks the scrape as failed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterable[Metric]:
        return []  # nothing is read before Prometheus asks

    def collect(self) -> Iterator[Metric]:
        yield from self._monitors()
        yield from self._windows()
        yield from self._counts()

    def _monitors(self) -> Iterator[Metric]:
        labels = ["endpoint", "monitor"]
        share = GaugeMetricFamily(
            "onnxserve_drift_share", "Share of columns that the last judged window found drifted.", labels=labels
        )
        state = GaugeMetricFamily(
            "onnxserve_monitor_state", "1 for the state that a monitor is in.", labels=[*labels, "state"]
        )
        success = GaugeMetricFamily(
            "onnxserve_monitor_last_success_timestamp_seconds", "When a window was last judged.", labels=labels
        )
        until = GaugeMetricFamily(
            "onnxserve_monitor_judged_until_timestamp_seconds",
            "End of the newest judged window, in event time.",
            labels=labels,
        )
        monitors = Monitors(self._store)
        paused = {(one.endpoint, one.monitor) for one in monitors.states() if one.paused}
        for endpoint in self._store.endpoints():
            for name in endpoint.spec.monitors:
                key = [endpoint.name, name]
                latest = monitors.windows(*key, states=["judged"], limit=_LOOKED_BACK)
                judged = latest[-1] if latest else None
                last = next(iter(monitors.windows(*key, limit=1)), None)
                now_in = "paused" if (endpoint.name, name) in paused else _state(judged, last)
                for possible in STATES:
                    state.add_metric([*key, possible], float(possible == now_in))
                if judged is not None:
                    until.add_metric(key, judged.end.timestamp())
                    success.add_metric(key, self._last_success(*key))
                shares = [window.figures[_SHARE] for window in latest if window.figures.get(_SHARE) is not None]
                if shares:
                    share.add_metric(key, shares[-1])
        yield from (share, state, success, until)

    def _last_success(self, endpoint: str, monitor: str) -> float:
        query = select(func.max(MonitorWindowRow.updated_at)).where(
            MonitorWindowRow.endpoint == endpoint,
            MonitorWindowRow.monitor == monitor,
            MonitorWindowRow.state == "judged",
        )
        with self._store.transaction() as session:
            last: datetime | None = session.scalar(query)
        return last.timestamp() if last is not None else 0.0

    def _windows(self) -> Iterator[Metric]:
        judged = CounterMetricFamily(
            "onnxserve_monitor_windows", "Judged windows.", labels=["endpoint", "monitor", "verdict"]
        )
        failed = CounterMetricFamily(
            "onnxserve_monitor_failures",
            "Attempts to judge a window that have failed.",
            labels=["endpoint", "monitor"],
        )
        row = MonitorWindowRow
        by_verdict = (
            select(row.endpoint, row.monitor, row.verdict, func.count())
            .where(row.state == "judged")
            .group_by(row.endpoint, row.monitor, row.verdict)
        )
        by_monitor = select(row.endpoint, row.monitor, func.sum(row.attempts)).group_by(row.endpoint, row.monitor)
        with self._store.transaction() as session:
            for endpoint, monitor, verdict, count in session.execute(by_verdict):
                judged.add_metric([endpoint, monitor, verdict], count)
            for endpoint, monitor, attempts in session.execute(by_monitor):
                failed.add_metric([endpoint, monitor], float(attempts or 0))
        yield from (judged, failed)

    def _counts(self) -> Iterator[Metric]:
        firing = GaugeMetricFamily(
            "onnxserve_alerts_firing", "Alerts that have begun and are not over.", labels=["endpoint", "monitor"]
        )
        retrainings = GaugeMetricFamily(
            "onnxserve_retrainings", "Retrainings, by where they are.", labels=["endpoint", "monitor", "state"]
        )
        alert, one = AlertRow, RetrainingRow
        by_alert = (
            select(alert.endpoint, alert.monitor, func.count())
            .where(alert.state == "firing")
            .group_by(alert.endpoint, alert.monitor)
        )
        by_state = select(one.endpoint, one.monitor, one.state, func.count()).group_by(
            one.endpoint, one.monitor, one.state
        )
        with self._store.transaction() as session:
            for endpoint, monitor, count in session.execute(by_alert):
                firing.add_metric([endpoint, monitor], count)
            for endpoint, monitor, state, count in session.execute(by_state):
                retrainings.add_metric([endpoint, monitor, state], count)
        yield from (firing, retrainings)


def _state(judged: MonitorWindow | None, last: MonitorWindow | None) -> str:
    """Where a monitor is that is not paused.

    Args:
        judged: its newest judged window.
        last: its newest window.
    """
    if last is not None and (last.state == "failed" or last.attempts > 0) and last.state != "judged":
        return "failing"
    if judged is None:
        return "waiting"
    if judged.verdict in ALARMS:
        return "alarm"
    return "not judged" if judged.verdict == "not judged" else "ok"
