"""Reading the inference log: the rows of one endpoint in a range of time, each once, in bounded memory. `InferenceLog`
reads the rows of a window as they are. A `View` is one table of them, with labels and every column that a file has."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, EndpointLabels, LabelMatches, join_labels
from mlflow_deploy_plugin.inference_log.scan import RECEIVED_TIME, SHADOW, RowFilter, microseconds_of, scan_hour
from mlflow_deploy_plugin.inference_log.storage import (
    FAILURES,
    Hour,
    LogFile,
    LogLocation,
    iter_hours,
    list_endpoints,
    list_files,
    list_files_by_hour,
    locate_log,
)
from mlflow_deploy_plugin.inference_log.tables import Sample, concat_tables, is_list, summarise_lists, unify_schemas
from mlflow_deploy_plugin.inference_log.windows import TimeRange, Window, window_at
from mlflow_deploy_plugin.messages import did_you_mean
from mlflow_deploy_plugin.runtime.log_columns import EVENT_TIME
from mlflow_deploy_plugin.spec import duration_seconds
from mlflow_deploy_plugin.tabular import group_tables

MAX_ROWS = 100_000
_TIME = pa.timestamp("us", tz="UTC")
_FIRST = {
    EVENT_TIME: _TIME,
    "_prediction_id": pa.string(),
    "_variant": pa.string(),
    "_model": pa.string(),
    "_version": pa.string(),
}
_LAST = {
    LABEL: pa.string(),
    LABEL_NUMBER: pa.float64(),
    RECEIVED_TIME: _TIME,
    SHADOW: pa.bool_(),
    "_latency_us": pa.int64(),
    "_status": pa.int16(),
    "_request_id": pa.string(),
    "_segment": pa.string(),
    "_offset": pa.int64(),
    "_row": pa.int32(),
}
"""The log's own columns stand before and behind those of the model."""
_LABEL_NEEDS = ("_prediction_id", "_row", RECEIVED_TIME)
_LABELLED_ROWS, _LABELLED_BYTES = 200_000, 64 * 2**20
_READERS = 8
_TRIES = 5


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows that one version answered in a window, without those of shadows: at most `MAX_ROWS` in the order of
    their hashes, with lists summarised. `rows` is their number, estimated if `is_sampled`; `other_versions` has the
    number of rows of other versions, by "MODEL version N"."""

    model: str
    version: str
    table: pa.Table
    rows: int
    is_sampled: bool
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceLog:
    """A log, read file by file. `unreadable` has the files that were malformed and left out, with the reason. Rows that
    were received before `since` are left out, such as those of a deleted endpoint of the same name."""

    location: LogLocation
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)
    since: datetime | None = None

    @property
    def failures(self) -> "InferenceLog":
        """The log of requests that got no answer: it has the reason, and no columns of the model."""
        root, shown = (f"{name.rstrip('/')}/{FAILURES}" for name in (self.location.root, self.location.shown))
        return replace(self, location=replace(self.location, root=root, shown=shown))

    def labels(self, endpoint: str) -> EndpointLabels:
        return EndpointLabels(self.location, endpoint, self.unreadable)

    def endpoints(self) -> list[str]:
        return list_endpoints(self.location)

    def hours(self, endpoint: str, window: Window | None = None) -> list[Hour]:
        """Return the hours that have rows, ascending; with a window, the hours that overlap it."""
        return list(self.walk_hours(endpoint, window))

    def walk_hours(self, endpoint: str, window: Window | None = None, newest_first: bool = False) -> Iterator[Hour]:
        """Yield the hours that have rows, ascending, and list each folder only when it is reached."""
        since = self.since
        if since is None:
            yield from iter_hours(self.location, endpoint, window, newest_first)
            return
        # For an hour before `since` only the rows tell: its files may be compacted or shipped later, and new rows may
        # be of old events.
        for hour in sorted(self.all_files(endpoint, window), reverse=newest_first):
            if hour.start >= since or next(self.scan(hour, TimeRange(), ["_row"]), None) is not None:
                yield hour

    def files(self, hour: Hour) -> list[LogFile]:
        return [file for file in list_files(self.location, hour.folder) if self._received.may_have_rows(file.changed)]

    def all_files(self, endpoint: str, window: Window | None = None) -> dict[Hour, list[LogFile]]:
        """Return the hours, in order, and their files: all by one listing, or the hours that overlap a window."""
        if window is None:
            return _with_rows(list_files_by_hour(self.location, endpoint), self._received)
        hours = iter_hours(self.location, endpoint, window)
        return {hour: files for hour in hours if (files := self.files(hour))}

    def batches(
        self, endpoint: str, window: Window, columns: Sequence[str] | None = None, shadows: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the rows of a window, each once, hour by hour and some thousand at a time. Only `columns` are read, if
        a file has them: schemas may differ. Raises OnnxserveError if the log is down."""
        for hour in iter_hours(self.location, endpoint, window):
            yield from self.scan(hour, TimeRange(window.start, window.end), columns, shadows)

    def scan(
        self, hour: Hour, times: TimeRange, columns: Sequence[str] | None, shadows: bool = False
    ) -> Iterator[pa.Table]:
        """Yield the rows of an hour that are of the time range, as `batches` does."""
        if self.since is not None:
            times = replace(times, received_from=max(times.received_from, self.since))
        yield from scan_hour(self.location, hour.folder, RowFilter(columns, times, shadows), self.unreadable)

    def schema(self, view: "View") -> pa.Schema:
        """Return the columns that any file of the selection has, since versions differ; none without files."""

        def read_schema(file: LogFile) -> pa.Schema | None:
            try:
                return pq.read_schema(file.path, filesystem=self.location.filesystem)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException):
                return None  # it cannot be understood, which is reported when its rows are read

        with ThreadPoolExecutor(_READERS) as pool:
            for _ in range(_TRIES):
                files = [file for found in _due_files(self, view).values() for file in found]
                try:
                    return unify_schemas(schema for schema in pool.map(read_schema, files) if schema is not None)
                except FileNotFoundError:  # compacted or expired since it was listed
                    continue
        return pa.schema([])

    def count(self, endpoint: str, window: Window) -> int:
        """Return the number of rows of a window; raise as `batches` does."""
        return sum(len(batch) for batch in self.batches(endpoint, window, columns=["_row"]))

    def latest_window(self, endpoint: str, every: str, now: datetime) -> Window:
        """Return the last window of length `every` that is over and has rows, or raise NotFound."""
        unfinished = None
        for hour in self.walk_hours(endpoint, newest_first=True):
            for window in self._windows_of(hour, every):
                if window.end <= now:
                    return window
                unfinished = window
        if unfinished is not None:
            raise NotFound(
                f"no whole window of {every} has rows of endpoint {endpoint!r}; {unfinished} is not over yet: "
                f"--window {unfinished} judges what it has so far"
            )
        raise NotFound(f"nothing was captured of endpoint {endpoint!r} so far (looked in {self.location.shown})")

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
            other_versions={f"{one[0]} version {one[1]}": rows for one, rows in counts.items() if one != chosen},
        )

    def labelled(
        self, endpoint: str, window: Window, max_rows: int = MAX_ROWS, labels: EndpointLabels | None = None
    ) -> WindowRows | None:
        """Return the rows of `read` with `_label` (text) and `_label_number` (float64), null without a label."""
        rows = self.read(endpoint, window, max_rows)
        if rows is None:
            return None
        return replace(rows, table=join_labels(rows.table, labels or self.labels(endpoint)))

    def _windows_of(self, hour: Hour, every: str) -> list[Window]:
        """Return the windows that have rows in this hour, the last one first."""
        if duration_seconds(every) % 3600 == 0 and self.since is None:
            # An hour lies within one window, and every file has rows.
            return [window_at(int(hour.start.timestamp()) * 1_000_000, every)] if self.files(hour) else []
        times: set[int] = set()
        length = duration_seconds(every) * 1_000_000
        for batch in self.scan(hour, TimeRange(), [EVENT_TIME]):
            times.update(np.unique(microseconds_of(batch.column(EVENT_TIME)) // length).tolist())
        return [window_at(number * length, every) for number in sorted(times, reverse=True)]

    @property
    def _received(self) -> TimeRange:
        return TimeRange() if self.since is None else TimeRange(received_from=self.since)


def open_log(log_uri: str, since: datetime | None = None) -> InferenceLog:
    """Return the log at `log_uri`. If another endpoint had the name before, `since` is the endpoint's `rows_since`.
    Raises InvalidConfig for a URI of another kind."""
    return InferenceLog(locate_log(log_uri), since=since)


@dataclass(frozen=True)
class View:
    """A selection of an endpoint's rows, with the columns of their labels, and with the rows of shadows."""

    endpoint: str
    times: TimeRange = field(default_factory=TimeRange)
    labels: bool = True
    shadows: bool = False


def view_schema(log: InferenceLog, view: View) -> pa.Schema:
    """Return the columns of any file, since versions differ; raise NotFound if the endpoint has no rows at all."""
    schema = log.schema(view)
    if not len(schema):
        require_endpoint(log, view.endpoint)
    own = _FIRST | _LAST
    model = {found.name: _for_duckdb(found.type) for found in schema if found.name not in own}
    fields = _FIRST | model | _LAST
    if not view.labels:
        del fields[LABEL], fields[LABEL_NUMBER]
    return pa.schema(fields.items())


def view_tables(
    log: InferenceLog, view: View, columns: Collection[str], labels: EndpointLabels | None = None
) -> Iterator[pa.Table]:
    """Yield the rows with at least `columns`, if a file has them. Labels, which the caller may pass, are joined if
    `columns` has their column. Raises OnnxserveError if the log is down."""
    if not {LABEL, LABEL_NUMBER} & set(columns):
        yield from _tables(log, view, set(columns))
        return
    labels = labels or log.labels(view.endpoint)
    keys = labels.key_columns
    for tables in group_tables(_tables(log, view, {*columns, *_LABEL_NEEDS, *keys}), _LABELLED_ROWS, _LABELLED_BYTES):
        # Only tables with keys of the same types are concatenated: another type may change a large whole number.
        alike: dict[tuple[str, ...], list[pa.Table]] = {}
        for table in tables:
            types = tuple(str(field.type) for field in table.schema if field.name in keys)
            alike.setdefault(types, []).append(table)
        for some in alike.values():
            yield join_labels(concat_tables(some), labels)


def match_labels(log: InferenceLog, endpoint: str, matches: LabelMatches) -> None:
    """Match the labels with the rows of the log, newest hour first, until each has its row; raise as `view_tables`."""
    for hour in reversed(log.all_files(endpoint)) if matches.count else ():
        if matches.matched == matches.count:
            return
        for rows in log.scan(hour, TimeRange(), sorted({EVENT_TIME, "_row", *matches.columns}), shadows=True):
            matches.match(rows)


def require_endpoint(log: InferenceLog, endpoint: str) -> None:
    """Raise NotFound if the log has no rows of the endpoint; the message names the endpoints that it has."""
    known = log.endpoints()
    if endpoint in known:
        return
    has = f"it has rows of {', '.join(known)}" if known else "nothing was captured so far"
    hint = did_you_mean(endpoint, known, has)
    raise NotFound(f"the inference log {log.location.shown} has no rows of an endpoint {endpoint!r}{hint}")


def _tables(log: InferenceLog, view: View, columns: Collection[str]) -> Iterator[pa.Table]:
    for hour in _due_files(log, view):
        yield from log.scan(hour, view.times, sorted(columns), view.shadows)


def _due_files(log: InferenceLog, view: View) -> dict[Hour, list[LogFile]]:
    """Return the hours and files that may have rows of the time range."""
    return _with_rows(log.all_files(view.endpoint, view.times.window), view.times)


def _with_rows(files: Mapping[Hour, Sequence[LogFile]], times: TimeRange) -> dict[Hour, list[LogFile]]:
    """Return the hours and files that may have rows of the times of receipt."""
    due = {hour: [file for file in found if times.may_have_rows(file.changed)] for hour, found in files.items()}
    return {hour: found for hour, found in due.items() if found}


def _for_duckdb(kind: pa.DataType) -> pa.DataType:
    """Return a type that DuckDB takes: it has neither half floats nor columns without a type."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_null(kind):
        return pa.string()
    if is_list(kind):
        return pa.list_(_for_duckdb(kind.value_type))
    return kind
