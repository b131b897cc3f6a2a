"""What is counted of shadows, beside the metrics of requests and summed over the workers with them."""

import threading
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mlflow_deploy_plugin.server.inference.shadow_compare import ShadowComparison
from mlflow_deploy_plugin.server.models.variants import ServedVariant
from mlflow_deploy_plugin.server.observability.metrics import SECONDS
from mlflow_deploy_plugin.server.observability.mmap_counters import MmapCounters

Outcome = Literal["compared", "failed", "dropped"]
OUTCOMES: tuple[Outcome, ...] = ("compared", "failed", "dropped")

_DIFFERENCES = (0.0, *(base * 10.0**power for power in range(-6, 7) for base in (1.0, 3.0)))
"""Of whatever is predicted: probabilities lie at one end, prices at the other."""


@dataclass(frozen=True, slots=True)
class _Series:
    """The slots of one shadow; of a histogram the sum, and one bucket for each bound and for what lies beyond."""

    outcomes: Mapping[Outcome, int]
    same: int
    different: int
    difference: tuple[int, tuple[int, ...]]
    seconds: tuple[int, tuple[int, ...]]


class ShadowMetrics:
    """The values of this worker. Every method may be called from any thread.

    Args:
        folder: that of `server/observability/metrics.py`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._series: dict[tuple[str, str, str, str], _Series] = {}
        self._tallies: tuple[MmapCounters, MmapCounters] | None = None  # until a shadow is there

    def count(self, shadow: ServedVariant, outcome: Outcome, requests: int = 1) -> None:
        """Requests whose copies were compared, could not be, or found no room."""
        with self._lock:
            series, counters, _ = self._of(shadow)
            counters.cells[series.outcomes[outcome]] += requests

    def observe(self, shadow: ServedVariant, comparison: ShadowComparison, requests: int, seconds: float) -> None:
        """Requests that were compared, in one run of `seconds`."""
        numbers = comparison.differences[np.isfinite(comparison.differences)]
        places = Counter(np.searchsorted(_DIFFERENCES, numbers).tolist())  # the first bound that is not below
        same = int(comparison.same.sum())
        with self._lock:
            series, counters, histograms = self._of(shadow)
            counters.cells[series.outcomes["compared"]] += requests
            counters.cells[series.same] += same
            counters.cells[series.different] += len(comparison.same) - same
            total, buckets = series.difference
            histograms.cells[total] += float(numbers.sum())
            for place, rows in places.items():
                histograms.cells[buckets[place]] += rows
            total, buckets = series.seconds
            histograms.cells[total] += seconds
            histograms.cells[buckets[bisect_left(SECONDS, seconds)]] += 1

    def _of(self, shadow: ServedVariant) -> tuple[_Series, MmapCounters, MmapCounters]:
        if self._tallies is None:
            worker = uuid.uuid4().hex
            self._tallies = (
                MmapCounters(self._folder / f"counter_{worker}.db"),
                MmapCounters(self._folder / f"histogram_{worker}.db"),
            )
        labels = shadow.endpoint, shadow.name, shadow.loaded.model, shadow.loaded.version
        series = self._series.get(labels)
        if series is None:
            named = dict(zip(("endpoint", "variant", "model", "version"), labels, strict=True))
            series = self._series[labels] = _new_series(named, *self._tallies)
        return series, *self._tallies


def _new_series(named: Mapping[str, str], counters: MmapCounters, histograms: MmapCounters) -> _Series:
    def counter(family: str, label: str, value: str, text: str) -> int:
        return counters.slot(family, family + "_total", {**named, label: value}, text)

    def histogram(family: str, text: str, bounds: tuple[float, ...]) -> tuple[int, tuple[int, ...]]:
        total = histograms.slot(family, family + "_sum", named, text)
        marks = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        return total, tuple(histograms.slot(family, family + "_bucket", {**named, "le": mark}, text) for mark in marks)

    requests = "Copies of requests to a shadow: compared with what was answered, failed, or dropped for want of room."
    rows = "Rows that a shadow has answered as the answering variant did, or differently."
    difference = "The largest absolute difference among the numbers that a shadow and the answer have for a row."
    return _Series(
        {outcome: counter("onnxserve_shadow_requests", "outcome", outcome, requests) for outcome in OUTCOMES},
        counter("onnxserve_shadow_rows", "agreement", "same", rows),
        counter("onnxserve_shadow_rows", "agreement", "different", rows),
        histogram("onnxserve_shadow_difference", difference, _DIFFERENCES),
        histogram("onnxserve_shadow_duration_seconds", "How long one run of a shadow took.", SECONDS),
    )
