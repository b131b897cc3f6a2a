"""The metrics of all workers: stored in memory-mapped files, summed, and formatted as
text for Prometheus.

A file contains the number of bytes in use, followed by entries. An entry consists of
the key's length, the number of cells, the key, and the cells, which are doubles. The
key is JSON: a metric's kind, name, help text and bounds, and the labels. A counter or
gauge has one cell; a histogram has its sum and its buckets. The multi-process mode of
prometheus_client is not used, because it creates several objects per bucket and holds
the GIL far longer. https://prometheus.io/docs/instrumenting/exposition_formats/
"""

import contextlib
import json
import logging
import mmap
import operator
import os
import shutil
import struct
import tempfile
import time
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson

from mlflow_deploy_plugin.core.statedir.files import METRICS, lock_file, write_atomically

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
MetricKind = Literal["counter", "gauge", "histogram", "summary"]
_KINDS: tuple[MetricKind, ...] = ("counter", "gauge", "histogram")
_ESCAPED = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_ENTRIES_AT_ONCE = 500
_SERIES_AT_ONCE = 60
_PAUSE_SECONDS = 1e-4
"""The duration of a sleep that releases the GIL, which a computing thread keeps for 5
ms (`sys.getswitchinterval`).
"""
_STEP_BYTES = 64 * 1024
_SHARED_MEMORY = Path("/dev/shm")
_FOLDERS = "onnxserve-metrics-"
_STATE = "state"
_LEAST_SHARED_BYTES = 4 * 1024 * 1024
_HEADER = struct.Struct("<i4x")  # bytes in use; key's bytes, number of cells
_ENTRY = struct.Struct("<ii")
_LOST_CELLS = 64
REQUESTS = "onnxserve_requests"
REQUEST_DURATION = "onnxserve_request_duration_seconds"
CAPTURE_ROWS = "onnxserve_capture_rows"
FEEDBACK_LABELS = "onnxserve_feedback_labels"
OF_VARIANT = ("endpoint", "variant", "model", "version")
"""The labels of the metrics of a served version."""
COUNTED = "counted.json"
"""The file that keeps the last servers' row counts after the removal of the servers'
metrics.
"""
_MAX_SAVED = 8
Rows = Mapping[str, Mapping[str, int]]
"""Outcome ("answered", "captured", "dropped") → endpoint → number of rows."""


@dataclass(frozen=True, slots=True)
class Metric:
    """The declaration of a metric. The sample of a counter is named name + "_total". A
    metric with `bounds` is a histogram; the bounds are ascending and have the format of
    the label `le`.
    """

    name: str
    help: str
    bounds: tuple[str, ...] = ()
    kind: MetricKind = "counter"


_LOST = {
    kind: Metric(
        f"onnxserve_unrecorded{suffix}",
        "Values not recorded because shared memory was full.",
        kind=kind,
    )
    for kind, suffix in zip(_KINDS, ("", "_gauges", "_histograms"), strict=True)
}
"""Kind → the metric of values for which shared memory lacks space. The histogram has
enough cells for any buckets.
"""


class MmapCounters:
    """The metrics of this worker in a file, which is locked until this object is
    deleted. Callers synchronize threads.

    Existing values of the file are kept. `cells` contains all doubles of the file, and
    `cells[slot]` is the value of a slot. Raises BlockingIOError if a running worker
    uses the file, and OSError if there is no space for the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o640)
        try:
            lock_file(self._file)
        except BlockingIOError:
            os.close(self._file)
            raise
        weakref.finalize(self, os.close, self._file)
        self._size = max(os.fstat(self._file).st_size - _STEP_BYTES, 0)
        self._grow()
        self._used = _HEADER.unpack_from(self._bytes)[0] or _HEADER.size
        self._is_full = False
        self._slots = {key: slot for key, slot, _ in _entries(bytes(self._bytes))}
        self._lost = {kind: self.slot(metric, {}) for kind, metric in _LOST.items()}

    def slot(self, metric: Metric, labels: Mapping[str, str]) -> int:
        """Return the slot of a label set, whose initial value is 0. A histogram's slot
        is the sum, followed by the buckets. If shared memory is full, return the slot
        of the unrecorded values, so that the response succeeds.
        """
        kind = "histogram" if metric.bounds else metric.kind
        # Replace lone surrogates, which cannot be encoded.
        spelled = {
            label: value.encode(errors="replace").decode() for label, value in labels.items()
        }
        key = json.dumps(
            [kind, metric.name, metric.help, metric.bounds, spelled],
            sort_keys=True,
        ).encode()
        if (position := self._slots.get(key)) is not None:
            return position
        if metric.bounds:
            cells = len(metric.bounds) + 2
        elif kind == "histogram":
            cells = _LOST_CELLS
        else:
            cells = 1
        entry = _ENTRY.pack(len(key), cells) + key + b" " * (-len(key) % 8) + bytes(8 * cells)
        try:
            while self._used + len(entry) > self._size:
                self._grow()
        except OSError as error:
            if not self._is_full:
                logger.error("no space for the metric %s: %s", metric.name, error.strerror)
            self._is_full = True
            self._slots[key] = self._lost[kind]
            return self._lost[kind]
        start = self._used
        self._used += len(entry)
        self._bytes[start : self._used] = entry
        self._bytes[: _HEADER.size] = _HEADER.pack(self._used)
        slot = self._used // 8 - cells
        self._slots[key] = slot
        return slot

    def _grow(self) -> None:
        """Allocate more bytes of the file now, because a later write without space
        would kill the worker (SIGBUS). A thread may still use an earlier mapping, which
        maps the same memory.
        """
        size = self._size + _STEP_BYTES
        with open(self._file, "ab", closefd=False) as end:  # macOS has no posix_fallocate(3).
            end.write(bytes(size - end.tell()))
        self._size = size
        self._bytes = memoryview(mmap.mmap(self._file, self._size))
        self.cells = self._bytes.cast("d")


@dataclass(slots=True)
class MetricSeries:
    """The values of a label set. For a histogram or a summary, `value` is the sum of
    the observations, and `buckets` contains the ascending bounds, each with the number
    of observations up to the bound; the text of a summary has only the last number.
    """

    labels: dict[str, str]
    value: float = 0.0
    buckets: list[tuple[str, float]] = field(default_factory=list)

    @property
    def count(self) -> float:
        return self.buckets[-1][1] if self.buckets else 0.0


@dataclass(frozen=True, slots=True)
class MetricFamily:
    name: str
    kind: MetricKind
    text: str
    series: list[MetricSeries] = field(default_factory=list)


def read_families(
    folder: Path,
    kinds: tuple[MetricKind, ...] = _KINDS,
) -> list[MetricFamily]:
    """Return all workers' metrics of these kinds, sorted by name. Counters and
    histograms include dead workers. Gauges in files `gauges_PID` are summed; other
    gauges are maxima. The call sleeps so that other threads can run.
    """
    families: dict[str, MetricFamily] = {}
    for key, cells in _unhurried(_sum_files(folder, kinds).items(), _ENTRIES_AT_ONCE):
        kind, name, text, bounds, labels = orjson.loads(key)
        series = MetricSeries(labels, cells[0])
        if kind == "histogram":
            # Unrecorded values lack bounds.
            counts = accumulate(cells[1:]) if bounds else [sum(cells[1:])]
            series.buckets += zip([*bounds, "+Inf"], counts, strict=True)
        families.setdefault(name, MetricFamily(name, kind, text)).series.append(series)
    return [families[name] for name in sorted(families)]


def read_series(
    folder: Path,
    kinds: tuple[MetricKind, ...] = _KINDS,
) -> defaultdict[str, list[MetricSeries]]:
    """Return the series of `read_families` by metric name; an empty list for an unknown
    name.
    """
    by_name = defaultdict[str, list[MetricSeries]](list)
    for family in read_families(folder, kinds):
        by_name[family.name] += family.series
    return by_name


def prometheus_text(families: list[MetricFamily]) -> bytes:
    """Return the families in Prometheus' text format."""
    lines: list[str] = []
    for family in families:
        name = family.name + "_total" if family.kind == "counter" else family.name
        text = family.text.replace("\\", r"\\").replace("\n", r"\n")
        lines.append(f"# HELP {name} {text}\n# TYPE {name} {family.kind}\n")
        for series in _unhurried(family.series, _SERIES_AT_ONCE):
            labels = [
                f'{label}="{value.translate(_ESCAPED)}"'
                for label, value in sorted(series.labels.items())
            ]
            braced = f"{{{','.join(labels)}}}" if labels else ""
            if family.kind not in ("histogram", "summary"):
                lines.append(f"{name}{braced} {series.value!r}\n")
                continue
            if family.kind == "histogram":
                begin = f"{name}_bucket{{" + "".join(f"{label}," for label in labels)
                lines += [f'{begin}le="{bound}"}} {count!r}\n' for bound, count in series.buckets]
            lines.append(
                f"{name}_count{braced} {series.count!r}\n{name}_sum{braced} {series.value!r}\n",
            )
    return "".join(lines).encode()


def _sum_files(
    folder: Path,
    kinds: tuple[MetricKind, ...],
) -> dict[bytes, list[float]]:
    """Return, by key, the cells of the metrics of these kinds, combined over all
    files.
    """
    sums: dict[bytes, list[float]] = {}
    prefixes = tuple(f'["{kind}"'.encode() for kind in kinds)
    for path in sorted(folder.glob("*.db")):
        try:
            content = path.read_bytes()
        except FileNotFoundError:  # A dead worker's gauges were removed.
            continue
        doubles: Any = memoryview(content).cast("d")
        lives = path.name.startswith("gauges")
        for key, slot, number in _unhurried(_entries(content), _ENTRIES_AT_ONCE):
            if not key.startswith(prefixes):
                continue
            cells: list[float] = doubles[slot : slot + number].tolist()
            before = sums.get(key)
            if before is None:
                sums[key] = cells
            elif key.startswith(b'["gauge"') and not lives:
                sums[key] = list(map(max, before, cells))
            else:
                sums[key] = list(map(operator.add, before, cells))
    return sums


def _entries(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each key of a file with the slot of the key's first cell and the number of
    cells.
    """
    position = _HEADER.size  # A new file is empty.
    used = _HEADER.unpack_from(content)[0] if content else 0
    while position < used:
        size, cells = _ENTRY.unpack_from(content, position)
        begin = position + _ENTRY.size
        slot = (begin + size + 7) // 8
        yield content[begin : begin + size], slot, cells
        position = 8 * (slot + cells)


def _unhurried(items: Iterable[Item], at_once: int) -> Iterator[Item]:
    """Yield the items, and sleep after every `at_once` items."""
    for number, item in enumerate(items, 1):
        yield item
        if number % at_once == 0:
            time.sleep(_PAUSE_SECONDS)


@dataclass(frozen=True)
class CaptureCounters:
    """The numbers of rows that were answered, captured and dropped since the start of
    the server `run`.
    """

    run: str
    rows: Rows


def read_capture_counters(state_dir: Path) -> CaptureCounters | None:
    """Return the row counts of all workers, including dead workers; if the server has
    ended, its saved counts.
    """
    link = state_dir / METRICS
    with contextlib.suppress(OSError):
        folder = link.readlink()
        if folder.is_dir():
            rows: dict[str, dict[str, int]] = {
                "answered": {},
                "captured": {},
                "dropped": {},
            }
            for series in read_series(folder, ("counter",))[CAPTURE_ROWS]:
                rows[series.labels["outcome"]][series.labels["endpoint"]] = int(series.value)
            return CaptureCounters(folder.name, rows)
    saved = saved_capture_counters(state_dir)
    return saved[-1] if saved else None


def saved_capture_counters(state_dir: Path) -> list[CaptureCounters]:
    """Return the row counts that the last servers have saved, oldest first. The agent
    may not have read all counts.
    """
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        saved = orjson.loads((state_dir / COUNTED).read_bytes())
        return [CaptureCounters(entry["run"], entry["rows"]) for entry in saved]
    return []


def save_capture_counters(state_dir: Path) -> None:
    """Save the row counts of an ended server, before its metrics are removed."""
    if (counters := read_capture_counters(state_dir)) is not None:
        saved = [entry for entry in saved_capture_counters(state_dir) if entry.run != counters.run]
        with contextlib.suppress(OSError):  # The disk may be full.
            write_atomically(
                state_dir / COUNTED,
                orjson.dumps([*saved, counters][-_MAX_SAVED:]),
            )


def shared_memory() -> Path | None:
    """Return the shared memory's folder; None if the folder does not exist, is not
    writable or has too little space.
    """
    is_writable = os.access(_SHARED_MEMORY, os.W_OK)
    if is_writable and shutil.disk_usage(_SHARED_MEMORY).free >= _LEAST_SHARED_BYTES:
        return _SHARED_MEMORY
    return None


def make_metrics_folder(state_dir: Path) -> int:
    """Create an empty folder for the metrics of a starting server, and remove the last
    server's metrics. Return the descriptor of a lock on the folder. While this process
    or a fork keeps it open, no other server removes the folder. The files are in shared
    memory, because a write to a mapped file on a full disk would kill the worker
    (SIGBUS).
    """
    remove_metrics(state_dir)
    # Remove a killed server's metrics if no state folder links to them any more. If a
    # state folder still links to the metrics, the next server of that folder saves the
    # counts first.
    for left in (shared_memory() or Path(tempfile.gettempdir())).glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):
            back = (left / _STATE).readlink() / METRICS
            descriptor = os.open(left, os.O_RDONLY)
            try:
                # This fails if the server runs.
                lock_file(descriptor)
                if not back.is_symlink() or back.readlink() != left:
                    shutil.rmtree(left)
            finally:
                os.close(descriptor)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDERS, dir=shared_memory()))
    lock = os.open(folder, os.O_RDONLY)
    lock_file(lock, waits=True)
    (state_dir / METRICS).symlink_to(folder)
    (folder / _STATE).symlink_to(state_dir.absolute())
    return lock


def remove_metrics(state_dir: Path) -> None:
    """Remove the metrics of the state folder's last server, and save its row counts.
    Raises OSError if the state folder cannot be written; the metrics are then kept.
    """
    link = state_dir / METRICS
    if link.is_symlink():
        save_capture_counters(state_dir)
        folder = link.readlink()
        link.unlink()
        shutil.rmtree(folder, ignore_errors=True)
