"""Reads the inference log: the rows of one endpoint in one window of event time, each once, in bounded memory.

The log is written at least once (`agent/ship.py`), so a row may stand in it twice; (`_segment`, `_offset`, `_row`)
tells. Their hash also makes the sample: of a window that is larger than the bound, the rows with the smallest hashes
are kept. Doubles have equal hashes, so they are dropped whatever the order of the files is, and the same log always
gives the same sample (bottom-k sampling: Cohen and Kaplan, PODC 2007).
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from mlflow_deploy_plugin.errors import NotFound, OnnxserveError
from mlflow_deploy_plugin.inference_log.lists import Array, summarise_lists
from mlflow_deploy_plugin.inference_log.location import locate_log
from mlflow_deploy_plugin.inference_log.windows import Window, window_at
from mlflow_deploy_plugin.runtime.rows import EVENT_TIME
from mlflow_deploy_plugin.spec import duration_seconds

MAX_ROWS = 100_000
_BATCH_ROWS = 8192
_HOUR = timedelta(hours=1)


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows that one version answered in a window.

    Attributes:
        table: at most `MAX_ROWS` rows in the order of their hashes; lists are summarised (`lists.py`).
        rows: how many there are; exact where `is_sampled` is False, else estimated.
        other_versions: rows that other versions answered in the same window, by "MODEL version N".
    """

    model: str
    version: str
    table: pa.Table
    rows: int
    is_sampled: bool
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceLog:
    """The log below `root` of a file system; `shown` is its name in messages."""

    filesystem: Any
    root: str
    shown: str

    def endpoints(self) -> list[str]:
        """The endpoints that have rows."""
        return [value for value, _ in self._partitions(self.root, "endpoint")]

    def latest_window(self, endpoint: str, every: str, now: datetime) -> Window:
        """The last window of length `every` that is over and has rows.

        Raises:
            NotFound: there is none; the message says what there is.
        """
        unfinished = None
        for hour, folder in self._hours(endpoint):
            for window in self._windows_of(hour, folder, every):
                if window.end <= now:
                    return window
                unfinished = window
        if unfinished is not None:
            raise NotFound(
                f"no whole window of {every} has rows of endpoint {endpoint!r}; {unfinished} is not over yet: "
                "name a window that is (--window START/END)"
            )
        raise NotFound(f"nothing was captured of endpoint {endpoint!r} so far (looked in {self.shown})")

    def read(self, endpoint: str, window: Window, max_rows: int = MAX_ROWS) -> WindowRows | None:
        """The rows of the version that answered most of the window; None where the window has none at all."""
        samples: dict[tuple[str, str], _Sample] = {}
        for batch in self._batches(endpoint, window):
            identities = pc.binary_join_element_wise(batch.column("_model"), batch.column("_version"), "\n")
            for identity in pc.unique(identities).to_pylist():
                model, _, version = identity.rpartition("\n")
                rows = batch.filter(pc.equal(identities, identity))
                samples.setdefault((model, version), _Sample(max_rows)).add(rows)
        if not samples:
            return None
        counts = {identity: sample.rows() for identity, sample in samples.items()}
        model, version = chosen = max(counts, key=lambda identity: (counts[identity], identity))
        return WindowRows(
            model=model,
            version=version,
            table=samples[chosen].table(),
            rows=counts[chosen],
            is_sampled=samples[chosen].is_full,
            other_versions={f"{m} version {v}": rows for (m, v), rows in counts.items() if (m, v) != chosen},
        )

    def _batches(self, endpoint: str, window: Window) -> Iterator[pa.Table]:
        """The window's rows, a few thousand at a time."""
        for hour, folder in self._hours(endpoint):
            if hour + _HOUR <= window.start or hour >= window.end:
                continue
            for path in self._files(folder):
                with _readable(path), self.filesystem.open_input_file(path) as file:
                    for batch in pq.ParquetFile(file).iter_batches(_BATCH_ROWS):
                        table = pa.Table.from_batches([batch])
                        times = _microseconds(table)
                        inside = (times >= window.start_us) & (times < window.end_us)
                        if inside.any():
                            yield summarise_lists(table.filter(pa.array(inside)))

    def _windows_of(self, hour: datetime, folder: str, every: str) -> list[Window]:
        """The windows that have rows in this hour, the last one first."""
        if duration_seconds(every) % 3600 == 0:  # an hour lies in one window, and has rows, or no file
            return [window_at(int(hour.timestamp()) * 1_000_000, every)] if self._files(folder) else []
        times: set[int] = set()
        length = duration_seconds(every) * 1_000_000
        for path in self._files(folder):
            with _readable(path), self.filesystem.open_input_file(path) as file:
                table = pq.ParquetFile(file).read(columns=[EVENT_TIME])
            times.update(np.unique(_microseconds(table) // length).tolist())
        return [window_at(number * length, every) for number in sorted(times, reverse=True)]

    def _hours(self, endpoint: str) -> Iterator[tuple[datetime, str]]:
        """The hours that have rows, the last one first, and their folders."""
        for date, date_folder in reversed(self._partitions(f"{self.root}/endpoint={endpoint}", "date")):
            for hour, folder in reversed(self._partitions(date_folder, "hour")):
                yield datetime.strptime(f"{date} {hour}", "%Y-%m-%d %H").replace(tzinfo=UTC), folder

    def _partitions(self, folder: str, key: str) -> list[tuple[str, str]]:
        """Values of the partition `key` below the folder, ascending, with the folder of each."""
        prefix = f"{key}="
        return sorted(
            (entry.base_name.removeprefix(prefix), entry.path)
            for entry in self._entries(folder)
            if entry.type == fs.FileType.Directory and entry.base_name.startswith(prefix)
        )

    def _files(self, folder: str) -> list[str]:
        return sorted(
            entry.path
            for entry in self._entries(folder)
            if entry.type == fs.FileType.File
            and entry.base_name.endswith(".parquet")
            and not entry.base_name.startswith(".")
        )

    def _entries(self, folder: str) -> list[Any]:
        with _readable(self.shown):
            return list(self.filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True)))


def open_log(log_uri: str) -> InferenceLog:
    """The log at `log_uri`.

    Raises:
        InvalidConfig: the URI is of a kind that cannot be read.
    """
    location = locate_log(log_uri)
    return InferenceLog(location.filesystem, location.root, location.shown)


class _Sample:
    """At most `bound` distinct rows: those with the smallest hashes."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._tables: list[pa.Table] = []
        self._hashes: list[Array] = []
        self._held = 0
        self.is_full = False

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._hashes.append(_hashes(table))
        self._held += len(table)
        if self._held > 2 * self._bound:
            self._compact()

    def rows(self) -> int:
        """The number of distinct rows that were added; beyond the bound an estimate, good to 1/sqrt(bound)."""
        self._compact()
        if not self.is_full:
            return self._held
        return round((self._bound - 1) / (float(self._hashes[0][-1]) / 2.0**64))

    def table(self) -> pa.Table:
        self._compact()
        return self._tables[0]

    def _compact(self) -> None:
        table = pa.concat_tables(self._tables, promote_options="permissive")
        hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
        if len(hashes) > self._bound:
            self.is_full = True
            hashes, first = hashes[: self._bound], first[: self._bound]
        self._tables, self._hashes, self._held = [table.take(pa.array(first))], [hashes], len(hashes)


def _hashes(table: pa.Table) -> Array:
    """[N] uint64 of (segment, offset, row), evenly spread: two rows of a log share one by chance about never."""
    segments = table.column("_segment").combine_chunks().dictionary_encode()
    seeds = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in segments.dictionary.to_pylist()]
    hashes: Array = np.frombuffer(b"".join(seeds), dtype=np.uint64)[np.asarray(segments.indices)]
    for name in ("_offset", "_row"):
        hashes = _mix(hashes ^ _mix(table.column(name).to_numpy().astype(np.uint64)))
    return hashes


def _mix(values: Array) -> Array:
    """splitmix64's step: every bit of the result depends on every bit of the value; arithmetic is modulo 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = values ^ (values >> np.uint64(31))
    return mixed


def _microseconds(table: pa.Table) -> Array:
    """[N] int64: the event times."""
    times: Array = table.column(EVENT_TIME).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()
    return times


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turns what reading the log may raise into one line that names the file."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise OnnxserveError(f"the inference log cannot be read: {path}: {' '.join(str(error).split())}") from None
