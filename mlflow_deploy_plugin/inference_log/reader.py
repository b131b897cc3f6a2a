"""Reading the inference log: the rows of one endpoint in one window of event time, each once, in bounded memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.columns import summarise_lists
from mlflow_deploy_plugin.inference_log.dedup import Sample
from mlflow_deploy_plugin.inference_log.label_join import join_labels
from mlflow_deploy_plugin.inference_log.labels import EndpointLabels
from mlflow_deploy_plugin.inference_log.scan import FIRST_US, LAST_US, RowFilter, microseconds_of, scan_hour
from mlflow_deploy_plugin.inference_log.storage import (
    FAILURES,
    Hour,
    LogFile,
    LogLocation,
    list_endpoints,
    list_files,
    list_files_by_hour,
    list_hours,
    locate_log,
)
from mlflow_deploy_plugin.inference_log.windows import CLOCK_SKEW, Window, microseconds, window_at
from mlflow_deploy_plugin.runtime import EVENT_TIME
from mlflow_deploy_plugin.spec import duration_seconds

MAX_ROWS = 100_000


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows that one version answered in a window, without those that shadows answered.

    Attributes:
        table: at most `MAX_ROWS` rows in the order of their hashes; lists are summarised (`summarise_lists`).
        rows: how many there are, estimated if `is_sampled`.
        other_versions: number of rows that other versions answered in the window, by "MODEL version N".
    """

    model: str
    version: str
    table: pa.Table
    rows: int
    is_sampled: bool
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceLog:
    """A log, read file by file.

    Attributes:
        unreadable: files that could not be understood and were passed over, and why.
        since: rows that were received earlier are left out, such as those of a deleted endpoint of the same name; None
            leaves none out.
    """

    location: LogLocation
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)
    since: datetime | None = None

    @property
    def root(self) -> str:
        return self.location.root

    @property
    def shown(self) -> str:
        """The log's name in messages."""
        return self.location.shown

    @property
    def failures(self) -> "InferenceLog":
        """The log of requests that got no answer: `_status` says why, and the model's columns are not there."""
        location = replace(self.location, root=f"{self.root}/{FAILURES}", shown=f"{self.shown.rstrip('/')}/{FAILURES}")
        return InferenceLog(location, self.unreadable, self.since)

    def endpoints(self) -> list[str]:
        """Return the endpoints that have rows."""
        return list_endpoints(self.location)

    def hours(self, endpoint: str, window: Window | None = None) -> list[Hour]:
        """Return the hours that have rows, ascending; with a window, the hours that overlap it."""
        if self.since is None:
            return list_hours(self.location, endpoint, window)
        if window is None:
            return [hour for hour, files in self.all_files(endpoint).items() if self._has_rows(hour, files)]
        hours = list_hours(self.location, endpoint, window)
        return [hour for hour in hours if self._has_rows(hour, self.files(hour))]

    def files(self, hour: Hour) -> list[LogFile]:
        """Return the files of an hour, by name."""
        return [file for file in list_files(self.location, hour.folder) if self._may_have_rows(file)]

    def all_files(self, endpoint: str) -> dict[Hour, list[LogFile]]:
        """Return every hour that has files, ascending, with its files, by one listing."""
        found = list_files_by_hour(self.location, endpoint)
        if self.since is None:
            return found
        due = {hour: [file for file in files if self._may_have_rows(file)] for hour, files in found.items()}
        return {hour: files for hour, files in due.items() if files}

    def batches(
        self, endpoint: str, window: Window, columns: Sequence[str] | None = None, shadows: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the rows of a window, each once, hour by hour and some thousand at a time.

        Args:
            columns: only these, if a file has them; its schema may differ from the next one's.
            shadows: also rows that shadows answered.

        Raises:
            OnnxserveError: the log is down.
        """
        rows = self._filter(columns, window.start_us, window.end_us, shadows)
        for hour in self.hours(endpoint, window):
            yield from scan_hour(self.location, hour.folder, rows, self.unreadable)

    def count(self, endpoint: str, window: Window) -> int:
        """Return the number of rows of a window; raise as `batches` does."""
        return sum(len(batch) for batch in self.batches(endpoint, window, columns=["_row"]))

    def latest_window(self, endpoint: str, every: str, now: datetime) -> Window:
        """Return the last window of length `every` that is over and has rows.

        Raises:
            NotFound: there is none; the message says what there is.
        """
        unfinished = None
        for hour in reversed(self.hours(endpoint)):
            for window in self._windows_of(hour, every):
                if window.end <= now:
                    return window
                unfinished = window
        if unfinished is not None:
            raise NotFound(
                f"no whole window of {every} has rows of endpoint {endpoint!r}; {unfinished} is not over yet: "
                f"--window {unfinished} judges what it has so far"
            )
        raise NotFound(f"nothing was captured of endpoint {endpoint!r} so far (looked in {self.shown})")

    def read(self, endpoint: str, window: Window, max_rows: int = MAX_ROWS) -> WindowRows | None:
        """Return the rows of the version that answered most of the window, or None if the window has no rows."""
        samples: dict[tuple[str, str], Sample] = {}
        for batch in self.batches(endpoint, window):
            identities = pc.binary_join_element_wise(batch.column("_model"), batch.column("_version"), "\n")
            for identity in pc.unique(identities).to_pylist():
                model, _, version = identity.rpartition("\n")
                rows = batch.filter(pc.equal(identities, identity))
                samples.setdefault((model, version), Sample(max_rows)).add(summarise_lists(rows))
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

    def labelled(self, endpoint: str, window: Window, max_rows: int = MAX_ROWS) -> WindowRows | None:
        """Return what `read` does, with the columns `_label` (text) and `_label_number` (float64).

        They are null for a row without a label. Of several labels of a row the last one wins (`labels.py`).
        """
        rows = self.read(endpoint, window, max_rows)
        if rows is None:
            return None
        table = join_labels(rows.table, EndpointLabels(self.location, endpoint, self.unreadable))
        return replace(rows, table=table)

    def _windows_of(self, hour: Hour, every: str) -> list[Window]:
        """Return the windows that have rows in this hour, the last one first."""
        if duration_seconds(every) % 3600 == 0 and self.since is None:
            # an hour lies in one window, and a file has rows
            return [window_at(int(hour.start.timestamp()) * 1_000_000, every)] if self.files(hour) else []
        times: set[int] = set()
        length = duration_seconds(every) * 1_000_000
        for batch in scan_hour(self.location, hour.folder, self._filter([EVENT_TIME]), self.unreadable):
            times.update(np.unique(microseconds_of(batch.column(EVENT_TIME)) // length).tolist())
        return [window_at(number * length, every) for number in sorted(times, reverse=True)]

    def _filter(
        self, columns: Sequence[str] | None, start_us: int = FIRST_US, end_us: int = LAST_US, shadows: bool = False
    ) -> RowFilter:
        received = None if self.since is None else (microseconds(self.since), LAST_US)
        return RowFilter(columns, start_us, end_us, shadows, received, self._may_have_rows)

    def _may_have_rows(self, file: LogFile) -> bool:
        """Return False if all rows of the file are left out: none was received after its file was written."""
        return self.since is None or file.changed >= self.since - CLOCK_SKEW

    def _has_rows(self, hour: Hour, files: Sequence[LogFile]) -> bool:
        """Return True if an hour has rows that are not left out.

        For an hour before `since` only the rows tell: its files may be compacted or shipped later, and new rows may be
        of old events.
        """
        if not files or self.since is None or hour.start >= self.since:
            return bool(files)
        return next(scan_hour(self.location, hour.folder, self._filter(["_row"]), self.unreadable), None) is not None


def open_log(log_uri: str, since: datetime | None = None) -> InferenceLog:
    """Return the log at `log_uri`. If another endpoint had the name before, `since` is the endpoint's `rows_since`.

    Raises:
        InvalidConfig: the URI is of a kind that cannot be read.
    """
    return InferenceLog(locate_log(log_uri), since=since)
