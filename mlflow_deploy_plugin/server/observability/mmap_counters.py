"""Counters of this worker that every worker can read: doubles in a file that is mapped into memory.

The file has the form of prometheus_client's multi-process mode (`prometheus_client/mmap_dict.py` 0.26: bytes in use,
then entries of length, key as JSON, value, time), so that its collector can add it up and drops the gauges of dead
workers. Its own values take a lock, ask for the process id and pack two numbers at each step. Here a step is an
addition to a `memoryview`, and one lock serves all values of a request: a fifth of the time.
"""

import json
import logging
import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_STEP_BYTES = 64 * 1024
_HEADER = struct.Struct("<i4x")  # bytes in use
_LENGTH = struct.Struct("<i")
_LOST = {
    "counter": ("onnxserve_unrecorded", "onnxserve_unrecorded_total"),
    "gauge": ("onnxserve_unrecorded_gauges", "onnxserve_unrecorded_gauges"),
    "histogram": ("onnxserve_unrecorded_histograms", "onnxserve_unrecorded_histograms_sum"),
}
"""Family and sample of the values that find no room, by the type of the file: a family has one type."""

HistogramSlots = tuple[int, tuple[int, ...]]
"""The slots of one label set of a histogram: the sum, and one bucket for each bound and for what lies beyond."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric.

    Attributes:
        name: of the family; a counter's sample is called name + "_total".
        help: the text for Prometheus.
        bounds: of a histogram's buckets, ascending, as the label `le` spells them.
    """

    name: str
    help: str
    bounds: tuple[str, ...] = ()


class MmapCounters:
    """The values of one type of metric (counter, gauge, histogram) of this worker; the caller locks.

    Attributes:
        cells: every double of the file; `cells[slot]` is the value of a slot.

    Raises:
        OSError: there is no room for the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        self._used, self._size = _HEADER.size, 0
        self._grow()
        self._is_full = False
        family, name = _LOST[path.name.partition("_")[0]]
        self._lost = self.slot(family, name, {}, "Values that found no room in shared memory.")

    def counter(self, metric: Metric, labels: Mapping[str, str]) -> int:
        """Make the slot of a label set of a counter."""
        return self.slot(metric.name, metric.name + "_total", labels, metric.help)

    def gauge(self, metric: Metric, labels: Mapping[str, str]) -> int:
        """Make the slot of a label set of a gauge."""
        return self.slot(metric.name, metric.name, labels, metric.help)

    def histogram(self, metric: Metric, labels: Mapping[str, str]) -> HistogramSlots:
        """Make the slots of a label set of a histogram."""
        buckets = [
            self.slot(metric.name, metric.name + "_bucket", {**labels, "le": bound}, metric.help)
            for bound in (*metric.bounds, "+Inf")
        ]
        return self.slot(metric.name, metric.name + "_sum", labels, metric.help), tuple(buckets)

    def slot(self, family: str, name: str, labels: Mapping[str, str], text: str) -> int:
        """Make a slot, 0 at first, for the sample `name` of a metric family with the help `text`.

        If shared memory is full, return the slot of the lost values: what is counted is worth less than the response.
        """
        spelled = {label: value.encode(errors="replace").decode() for label, value in labels.items()}  # lone surrogates
        key = json.dumps([family, name, spelled, text], sort_keys=True).encode()
        entry = _LENGTH.pack(len(key)) + key + b" " * (8 - (len(key) + 4) % 8) + bytes(16)
        try:
            while self._used + len(entry) > self._size:
                self._grow()
        except OSError as error:
            if not self._is_full:
                logger.error("no room for %s among the metrics: %s", name, error.strerror)
            self._is_full = True
            return self._lost
        start, self._used = self._used, self._used + len(entry)
        self._bytes[start : self._used] = entry
        self._bytes[: _HEADER.size] = _HEADER.pack(self._used)
        return (self._used - 16) // 8

    def _grow(self) -> None:
        """Allocate more of the file now: writing to a page that is not there would end the worker (SIGBUS).

        An earlier mapping that a thread still writes to is the same memory.
        """
        os.posix_fallocate(self._file, self._size, _STEP_BYTES)
        self._size += _STEP_BYTES
        self._bytes = memoryview(mmap.mmap(self._file, self._size))
        self.cells = self._bytes.cast("d")
