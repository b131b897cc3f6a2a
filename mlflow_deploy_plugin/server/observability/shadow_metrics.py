"""The metrics of shadows, summed over the workers with those of requests."""

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
from mlflow_deploy_plugin.server.observability.mmap_counters import HistogramSlots, Metric, MmapCounters

Outcome = Literal["compared", "failed", "dropped"]
OUTCOMES: tuple[Outcome, ...] = ("compared", "failed", "dropped")

_DIFFERENCES = (0.0, *(base * 10.0**power for power in range(-6, 7) for base in (1.0, 3.0)))
"""Wide, whatever is predicted: probabilities lie at one end, prices at the other."""

_REQUESTS = Metric(
    "onnxserve_shadow_requests",
    "Copies of requests to a shadow: compared with what was answered, failed, or dropped for want of room.",
)
_ROWS = Metric("onnxserve_shadow_rows", "Rows that a shadow has answered as the answering variant did, or differently.")
_DIFFERENCE = Metric(
    "onnxserve_shadow_difference",
    "The largest absolute difference among the numbers that a shadow and the answer have for a row.",
    tuple(f"{bound:g}" for bound in _DIFFERENCES),
)
_DURATION = Metric(
    "onnxserve_shadow_duration_seconds",
    "How long one run of a shadow took.",
    tuple(f"{bound:g}" for bound in SECONDS),
)


@dataclass(frozen=True, slots=True)
class _ShadowSlots:
    """The slots of one shadow."""

    outcomes: Mapping[Outcome, int]
    same: int
    different: int
    difference: HistogramSlots
    seconds: HistogramSlots


class ShadowMetrics:
    """The values of this worker. Every method may be called from any thread.

    Args:
        folder: that of `metrics.Metrics`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._slots: dict[tuple[str, str, str, str], _ShadowSlots] = {}
        self._files: tuple[MmapCounters, MmapCounters] | None = None  # made with the first shadow

    def count(self, shadow: ServedVariant, outcome: Outcome, requests: int = 1) -> None:
        """Count requests whose copies were compared, failed, or were dropped."""
        with self._lock:
            slots, counters, _ = self._slots_of(shadow)
            counters.cells[slots.outcomes[outcome]] += requests

    def observe(self, shadow: ServedVariant, comparison: ShadowComparison, requests: int, seconds: float) -> None:
        """Count requests that were compared, after one run of `seconds`."""
        numbers = comparison.differences[np.isfinite(comparison.differences)]
        places = Counter(np.searchsorted(_DIFFERENCES, numbers).tolist())  # the first bound that is not below
        same = int(comparison.same.sum())
        with self._lock:
            slots, counters, histograms = self._slots_of(shadow)
            counters.cells[slots.outcomes["compared"]] += requests
            counters.cells[slots.same] += same
            counters.cells[slots.different] += len(comparison.same) - same
            total, buckets = slots.difference
            histograms.cells[total] += float(numbers.sum())
            for place, rows in places.items():
                histograms.cells[buckets[place]] += rows
            total, buckets = slots.seconds
            histograms.cells[total] += seconds
            histograms.cells[buckets[bisect_left(SECONDS, seconds)]] += 1

    def _slots_of(self, shadow: ServedVariant) -> tuple[_ShadowSlots, MmapCounters, MmapCounters]:
        if self._files is None:
            worker = uuid.uuid4().hex
            self._files = (
                MmapCounters(self._folder / f"counter_{worker}.db"),
                MmapCounters(self._folder / f"histogram_{worker}.db"),
            )
        counters, histograms = self._files
        labels = shadow.endpoint, shadow.name, shadow.loaded.model, shadow.loaded.version
        slots = self._slots.get(labels)
        if slots is None:
            named = dict(zip(("endpoint", "variant", "model", "version"), labels, strict=True))
            slots = self._slots[labels] = _ShadowSlots(
                {outcome: counters.counter(_REQUESTS, {**named, "outcome": outcome}) for outcome in OUTCOMES},
                counters.counter(_ROWS, {**named, "agreement": "same"}),
                counters.counter(_ROWS, {**named, "agreement": "different"}),
                histograms.histogram(_DIFFERENCE, named),
                histograms.histogram(_DURATION, named),
            )
        return slots, counters, histograms
