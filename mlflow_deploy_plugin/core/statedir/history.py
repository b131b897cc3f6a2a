"""The history of a server for the console: the workers' counts per interval in the last
hour and in the last day.

    history/hour.jsonl      agent → workers     360 lines of 10 s
    history/day.jsonl       agent → workers     288 lines of 5 min

    {"at": 1700000000.0, "seconds": 10.0, "requests": [[endpoint, variant, model,
    version, status, number], …],
     "durations": [[endpoint, variant, model, version, {"0.005": number, …}], …],
     "rows": {endpoint: number}, "labels": number}

A line contains the increments of its interval, so lines can be summed, and a restart
does not look like a decrease. `at` is the interval's end by the wall clock, and
`seconds` is its length by the monotonic clock. The number of a bucket excludes the
buckets below. Explanations do not have durations. An interval without a server does not
have a line.
"""

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Literal, get_args

import orjson

from mlflow_deploy_plugin.core.statedir import metric_files
from mlflow_deploy_plugin.core.statedir.files import METRICS, write_atomically

_log = logging.getLogger(__name__)

Span = Literal["hour", "day"]
SPANS: tuple[Span, ...] = get_args(Span)
HISTORY = "history"
HISTORY_INTERVALS: Mapping[Span, tuple[float, int]] = {
    "hour": (10.0, 360),
    "day": (300.0, 288),
}
"""The seconds per line, and the number of lines, of each history file."""
_EXPLANATIONS = "explain"
_LAST_FIELD = b'"labels":'

_Counts = Counter[tuple[str, ...]]
"""Counts by kind and labels."""


class HistoryWriter:
    """Writes the history of a state folder. The agent calls `round` repeatedly."""

    def __init__(
        self,
        state_dir: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state_dir = state_dir
        self._clock = clock
        self._monotonic = monotonic
        self._run = ""
        self._seen = _Counts()
        self._seen_at = monotonic()
        self._rings = [
            _Ring(state_dir / HISTORY / f"{span}.jsonl", *interval)
            for span, interval in HISTORY_INTERVALS.items()
        ]

    def round(self) -> None:
        """Write a line if the last interval is over. If the disk is full, the line is
        lost.
        """
        now = self._monotonic()
        if self._run and now - self._seen_at < HISTORY_INTERVALS["hour"][0]:
            return
        try:
            folder = (self._state_dir / METRICS).readlink()
            counts = _read_counts(folder)
        except OSError:  # No server runs, so all counts of the next server are new.
            self._run = self._run or "none"
            self._seen_at = now
            return
        is_first = not self._run  # The first counts are from before the agent's start.
        # A new server counts from zero.
        added = counts - self._seen if folder.name == self._run else counts
        seconds = now - self._seen_at
        self._seen_at = now
        self._run = folder.name
        self._seen = counts
        if is_first:
            return
        try:
            for ring in self._rings:
                ring.add(self._clock(), seconds, added)
        except OSError as error:
            _log.warning("the server's history cannot be written: %s", error.strerror)


class _Ring:
    """A file of the last `kept` lines. A line is appended; a file of 2 * `kept` lines
    is rewritten.
    """

    def __init__(self, path: Path, seconds: float, kept: int) -> None:
        self._path = path
        self._seconds = seconds
        self._kept = kept
        self._pending = _Counts()
        self._pending_seconds = 0.0
        self._lines = len(_lines(path))

    def add(self, at: float, seconds: float, added: _Counts) -> None:
        """Add the counts of an interval of this length that ended at the time `at`. A
        line is written when the pending counts cover the length of a line.
        """
        self._pending.update(added)
        self._pending_seconds += seconds
        if self._pending_seconds < self._seconds:
            return
        counted = [
            (kind, labels, number) for (kind, *labels), number in self._pending.items() if number
        ]
        durations = defaultdict[tuple[str, ...], dict[str, int]](dict)
        for kind, labels, number in counted:
            if kind == "durations":
                durations[tuple(labels[:-1])][labels[-1]] = number
        document = {
            "at": round(at, 3),
            "seconds": round(self._pending_seconds, 3),
            "requests": [
                [*labels, number] for kind, labels, number in counted if kind == "requests"
            ],
            "durations": [[*labels, buckets] for labels, buckets in durations.items()],
            "rows": {labels[0]: number for kind, labels, number in counted if kind == "rows"},
            "labels": self._pending["labels",],
        }
        line = orjson.dumps(document)
        self._pending = _Counts()
        self._pending_seconds = 0.0
        if self._lines >= 2 * self._kept:
            lines = deque(_lines(self._path), self._kept)
            write_atomically(self._path, b"\n".join(lines))
            self._lines = len(lines)
        self._path.parent.mkdir(exist_ok=True)
        with self._path.open("ab") as file:
            file.write(b"\n" + line)  # The leading newline ends a line that a crash has cut off.
        self._lines += 1


def read_history(state_dir: Path, span: Span) -> bytes:
    """Return the last lines of a history file, oldest first, without lines that a crash
    has cut off.
    """
    return b"\n".join(
        deque(_lines(state_dir / HISTORY / f"{span}.jsonl"), HISTORY_INTERVALS[span][1]),
    )


def _lines(path: Path) -> list[bytes]:
    """Return the complete lines of a history file; empty if it cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    return [line for line in lines if _LAST_FIELD in line and line.endswith(b"}")]


def _read_counts(folder: Path) -> _Counts:
    """Return the counts of all workers: requests, durations, rows and labels."""
    counts = _Counts()
    by_name = metric_files.read_series(folder)
    of_version = itemgetter(*metric_files.OF_VARIANT)
    for series in by_name[metric_files.REQUESTS]:
        counts["requests", *of_version(series.labels), series.labels["status"]] += int(series.value)
    for series in by_name[metric_files.REQUEST_DURATION]:
        if series.labels["protocol"] == _EXPLANATIONS:
            continue
        for (_, below), (bound, count) in pairwise([("", 0.0), *series.buckets]):
            counts["durations", *of_version(series.labels), bound] += int(count - below)
    for series in by_name[metric_files.CAPTURE_ROWS]:
        if series.labels["outcome"] == "answered":
            counts["rows", series.labels["endpoint"]] += int(series.value)
    for series in by_name[metric_files.FEEDBACK_LABELS]:
        if series.labels["outcome"] == "accepted":
            counts["labels",] += int(series.value)
    return counts
