"""Prometheus metrics of the server, summed over its workers.

Under gunicorn, prometheus_client keeps the values in files of `PROMETHEUS_MULTIPROC_DIR`, which must be set before this
module is imported (`http/gunicorn_conf.py` sees to it); without it, the page shows this process alone.
"""

import os
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from mlflow_deploy_plugin.server.repository import Table

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_REQUEST_LABELS = ("endpoint", "model", "version", "protocol", "status")


class Metrics:
    """The counters of this worker, and the page that sums up all."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter("onnxserve_requests", "Requests answered.", _REQUEST_LABELS, registry=self._registry)
        self._seconds = Histogram(
            "onnxserve_request_duration_seconds",
            "From the body's arrival to the finished answer.",
            ("endpoint", "protocol"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        captures = Counter(
            "onnxserve_capture_requests",
            "Requests written to the spool, and those lost because it could not be written.",
            ("outcome",),
            registry=self._registry,
        )
        self._captures = {
            is_written: captures.labels(name) for is_written, name in ((True, "captured"), (False, "dropped"))
        }
        self._served = Gauge(
            "onnxserve_served_version",
            "Workers that serve this version.",
            ("endpoint", "variant", "model", "version"),
            registry=self._registry,
            multiprocess_mode="livesum",
        )
        self._served_now: set[tuple[str, str, str, str]] = set()

    def count_request(self, labels: tuple[str, str, str, str, str], seconds: float) -> None:
        """One answered request; `labels` are endpoint, model, version, protocol, HTTP status."""
        self._requests.labels(*labels).inc()
        self._seconds.labels(labels[0], labels[3]).observe(seconds)

    def count_capture(self, is_written: bool) -> None:
        self._captures[is_written].inc()

    def show_table(self, table: Table) -> None:
        """What this worker serves from now on."""
        served = set(_versions(table))
        for labels in self._served_now - served:
            self._served.labels(*labels).set(0)
        for labels in served:
            self._served.labels(*labels).set(1)
        self._served_now = served

    def page(self) -> bytes:
        """The values of all workers in Prometheus' text format."""
        if MULTIPROC_DIR not in os.environ:
            return generate_latest(self._registry)
        summed = CollectorRegistry()
        MultiProcessCollector(summed)  # type: ignore[no-untyped-call]
        return generate_latest(summed)


def _versions(table: Table) -> Iterator[tuple[str, str, str, str]]:
    for endpoint, served in table.items():
        for variant in served.variants.values():
            yield endpoint, variant.name, variant.loaded.model, variant.loaded.version
