"""The reader of the inference log. It returns the rows of a time range, each row
exactly once, with bounded memory. `InferenceLog` reads the rows of a window as stored.
A `View` is a table with labels and the columns of all files.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_deploy_plugin.core.column_names import EVENT_TIME, SHADOW, TRIED
from mlflow_deploy_plugin.core.errors import NotFound
from mlflow_deploy_plugin.core.messages import did_you_mean
from mlflow_deploy_plugin.core.spec.types import duration_seconds
from mlflow_deploy_plugin.core.tabular.streams import group_tables
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.labels import (
    LABEL,
    LABEL_NUMBER,
    EndpointLabels,
    read_labels,
)
from mlflow_deploy_plugin.serve.inference_log.scan import (
    MARKS,
    RECEIVED_TIME,
    RowFilter,
    microseconds_of,
    scan_hour,
)
from mlflow_deploy_plugin.serve.inference_log.storage import Hour, LogFile, LogLocation
from mlflow_deploy_plugin.serve.inference_log.tables import (
    TIME,
    Sample,
    is_list,
    summarise_lists,
    unify_schemas,
)
from mlflow_deploy_plugin.serve.inference_log.windows import (
    ALL_TIMES,
    TimeRange,
    Window,
    microseconds,
    window_at,
)

MAX_ROWS = 100_000
_FIRST = {
    EVENT_TIME: TIME,
    "_prediction_id": pa.string(),
    "_variant": pa.string(),
    "_model": pa.string(),
    "_version": pa.string(),
}
_LAST = {
    LABEL: pa.string(),
    LABEL_NUMBER: pa.float64(),
    RECEIVED_TIME: TIME,
    SHADOW: pa.bool_(),
    TRIED: pa.bool_(),
    "_latency_us": pa.int64(),
    "_status": pa.int16(),
    "_request_id": pa.string(),
    "_segment": pa.string(),
    "_offset": pa.int64(),
    "_row": pa.int32(),
}
"""The log's own columns that follow the model's columns. The columns `_FIRST` precede
the model's columns.
"""
_LABEL_NEEDS = ("_prediction_id", "_row")
_LABELLED_ROWS = 200_000
_LABELLED_BYTES = 64 * 2**20
_READERS = 8
_TRIES = 5


@dataclass(frozen=True, eq=False)
class WindowRows:
    """The rows that one version answered in a window, without shadow rows. `table` has
    at most `MAX_ROWS` rows in the order of their hashes, with lists summarised. `rows`
    is the number of rows, estimated if `is_sampled`. `other_versions` maps "MODEL
    version N" to the number of rows of other versions.
    """

    model: str
    version: str
    table: pa.Table
    rows: int
    is_sampled: bool
    other_versions: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class InferenceLog:
    """An inference log. `unreadable` maps each malformed file, which is skipped, to the
    reason. Rows received before `since` are skipped: for example, rows of a deleted
    endpoint of the same name.
    """

    location: LogLocation
    unreadable: dict[str, str] = field(default_factory=dict, compare=False)
    since: datetime | None = None

    @property
    def failures(self) -> "InferenceLog":
        """The log of requests without an answer. This log contains the reasons, and no
        columns of the model.
        """
        root = f"{self.location.root.rstrip('/')}/{storage.FAILURES}"
        title = f"{self.location.shown.rstrip('/')}/{storage.FAILURES}"
        return replace(self, location=replace(self.location, root=root, shown=title))

    def labels(self, endpoint: str) -> EndpointLabels:
        return EndpointLabels(read_labels(self.location, endpoint, self.unreadable))

    def endpoints(self) -> list[str]:
        return storage.list_endpoints(self.location)

    def hours(self, endpoint: str, window: Window | None = None) -> list[Hour]:
        """Return the hours that have rows, in ascending order. With a window, return
        only overlapping hours.
        """
        return list(self.walk_hours(endpoint, window))

    def walk_hours(
        self,
        endpoint: str,
        window: Window | None = None,
        newest_first: bool = False,
    ) -> Iterator[Hour]:
        """Yield the hours that have rows, ascending unless `newest_first`; list each
        day when it is reached.
        """
        times = ALL_TIMES if window is None else window.times
        for hour in self.all_hours(endpoint, times, newest_first):
            # Scan the rows of an hour before `since`: old files may be compacted or
            # shipped later, and new rows may have old event times.
            if (
                self.since is None
                or hour.start >= self.since
                or next(self.scan(hour, ALL_TIMES, ["_row"]), None) is not None
            ):
                yield hour

    def all_hours(
        self,
        endpoint: str,
        times: TimeRange = ALL_TIMES,
        newest_first: bool = False,
    ) -> Iterator[Hour]:
        """Yield the hours with the files that may have rows in the time range."""
        times = self._with_since(times)
        for hour in storage.iter_hours(self.location, endpoint, times.window, newest_first):
            files = [file for file in hour.files if times.may_have_rows(file.changed)]
            if files:
                yield replace(hour, files=files)

    def batches(
        self,
        endpoint: str,
        window: Window,
        columns: Sequence[str] | None = None,
        left_out: Sequence[str] = MARKS,
    ) -> Iterator[pa.Table]:
        """Yield the distinct rows of a window, hour by hour in tables of some thousand
        rows, without the rows that have a mark of `left_out`. Only `columns` are read.
        A table lacks the columns that its file lacks. Raises OnnxserveError if the log
        is unreachable.
        """
        for hour in self.all_hours(endpoint, window.times):
            yield from self.scan(hour, window.times, columns, left_out)

    def scan(
        self,
        hour: Hour,
        times: TimeRange,
        columns: Sequence[str] | None,
        left_out: Sequence[str] = MARKS,
    ) -> Iterator[pa.Table]:
        """Yield the distinct rows of an hour that are in the time range, in tables of
        some thousand rows, without the rows that have a mark of `left_out`. Only
        `columns` are read (None: all columns).
        """
        rows = RowFilter(columns, self._with_since(times), left_out)
        yield from scan_hour(self.location, hour, rows, self.unreadable)

    def schema(self, view: "View") -> pa.Schema:
        """Return the union of the columns of all files in the view. Without files, the
        schema is empty.
        """

        def read_schema(file: LogFile) -> pa.Schema | None:
            """Return the schema, or None if the file is malformed."""
            try:
                return pq.read_schema(file.path, filesystem=self.location.filesystem)
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowException):
                return None  # A malformed file is reported when its rows are read.

        with ThreadPoolExecutor(_READERS) as pool:
            for _ in range(_TRIES):
                hours = self.all_hours(view.endpoint, view.times)
                files = chain.from_iterable(hour.files for hour in hours)
                try:
                    return unify_schemas(
                        schema for schema in pool.map(read_schema, files) if schema is not None
                    )
                except FileNotFoundError:  # The file was compacted or expired after the listing.
                    continue
        return pa.schema([])

    def count(self, endpoint: str, window: Window) -> int:
        """Return the number of rows in a window; raise the errors of `batches`."""
        return sum(len(batch) for batch in self.batches(endpoint, window, columns=["_row"]))

    def latest_window(self, endpoint: str, every: str, now: datetime) -> Window:
        """Return the last finished window of length `every` that has rows, or raise
        NotFound.
        """
        unfinished = None
        length = duration_seconds(every) * 1_000_000
        for hour in self.walk_hours(endpoint, newest_first=True):
            if length % 3_600_000_000 == 0 and self.since is None:
                # The hour is in a single window, and each file has rows.
                windows = [window_at(microseconds(hour.start), every)]
            else:
                numbers: set[int] = set()
                for batch in self.scan(hour, ALL_TIMES, [EVENT_TIME]):
                    times = microseconds_of(batch.column(EVENT_TIME))
                    numbers.update(np.unique(times // length).tolist())
                windows = [
                    window_at(number * length, every) for number in sorted(numbers, reverse=True)
                ]
            for window in windows:
                if window.end <= now:
                    return window
                unfinished = window
        if unfinished is not None:
            raise NotFound(
                f"no finished window of {every} has rows of endpoint {endpoint!r}; {unfinished} "
                f"is not over yet: use --window {unfinished} to judge its rows so far",
            )
        raise NotFound(
            f"no rows of endpoint {endpoint!r} have been captured yet in {self.location.shown}",
        )

    def read(
        self,
        endpoint: str,
        window: Window,
        max_rows: int = MAX_ROWS,
    ) -> WindowRows | None:
        """Return the window's rows of the version that has the most rows in the window,
        or None without rows.
        """
        samples: dict[tuple[str, str], Sample] = {}
        for batch in self.batches(endpoint, window):
            identities = pc.binary_join_element_wise(
                batch.column("_model"),
                batch.column("_version"),
                "\n",
            )
            for identity in pc.unique(identities).to_pylist():
                model, _, version = identity.rpartition("\n")
                rows = batch.filter(pc.equal(identities, identity))
                samples.setdefault((model, version), Sample(max_rows)).add(summarise_lists(rows))
        if not samples:
            return None
        counts = {identity: sample.rows() for identity, sample in samples.items()}
        main = max(counts, key=lambda identity: (counts[identity], identity))
        model, version = main
        return WindowRows(
            model=model,
            version=version,
            table=samples[main].table(),
            rows=counts[main],
            is_sampled=samples[main].is_full,
            other_versions={
                f"{identity[0]} version {identity[1]}": rows
                for identity, rows in counts.items()
                if identity != main
            },
        )

    def labelled(
        self,
        endpoint: str,
        window: Window,
        max_rows: int = MAX_ROWS,
        labels: EndpointLabels | None = None,
    ) -> WindowRows | None:
        """Return the window's rows of the version that has the most rows, or None
        without rows. The table has `_label` (text) and `_label_number` (float64), which
        are null without a label.
        """
        rows = self.read(endpoint, window, max_rows)
        if rows is None:
            return None
        return replace(
            rows,
            table=(labels or self.labels(endpoint)).join(rows.table),
        )

    def _with_since(self, times: TimeRange) -> TimeRange:
        if self.since is None:
            return times
        return replace(times, received_from=max(times.received_from, self.since))


def open_log(log_uri: str, since: datetime | None = None) -> InferenceLog:
    """Return the log at `log_uri`. If an earlier endpoint had the same name, `since` is
    the endpoint's `rows_since`. Raises InvalidConfig for an unsupported URI.
    """
    return InferenceLog(storage.locate_log(log_uri), since=since)


@dataclass(frozen=True)
class View:
    """A selection of an endpoint's rows, with or without label columns, and the rows of
    shadows and of the page Try.
    """

    endpoint: str
    times: TimeRange = field(default_factory=TimeRange)
    labels: bool = True
    shadows: bool = False


def view_schema(log: InferenceLog, view: View) -> pa.Schema:
    """Return the union of the columns of all files; raise NotFound if the endpoint has
    no rows.
    """
    schema = log.schema(view)
    if not len(schema):
        require_endpoint(log, view.endpoint)
    log_columns = _FIRST | _LAST
    model = {
        column.name: _for_duckdb(column.type) for column in schema if column.name not in log_columns
    }
    fields = _FIRST | model | _LAST
    if not view.labels:
        del fields[LABEL], fields[LABEL_NUMBER]
    return pa.schema(fields.items())


def view_tables(
    log: InferenceLog,
    view: View,
    columns: Collection[str],
    labels: EndpointLabels | None = None,
) -> Iterator[pa.Table]:
    """Yield the rows with at least `columns`, if a file has them. Labels are joined if
    `columns` includes a label column; the caller may pass the labels. Raises
    OnnxserveError if the log is unreachable.
    """
    if not {LABEL, LABEL_NUMBER} & set(columns):
        yield from _tables(log, view, set(columns))
        return
    labels = labels or log.labels(view.endpoint)
    tables = _tables(log, view, {*columns, *_LABEL_NEEDS, *labels.key_columns})
    for group in group_tables(tables, _LABELLED_ROWS, _LABELLED_BYTES):
        yield labels.join(*group)


def match_labels(log: InferenceLog, endpoint: str, labels: EndpointLabels) -> None:
    """Mark the labels that have a row, newest hour first, until all labels have one.
    Raises OnnxserveError if the log is unreachable.
    """
    count = labels.count
    if not count:
        return
    columns = [EVENT_TIME, *_LABEL_NEEDS, *labels.key_columns]
    for hour in log.all_hours(endpoint, newest_first=True):
        for rows in log.scan(hour, ALL_TIMES, columns, left_out=()):
            labels.mark(rows)
        if labels.matched == count:
            return


def require_endpoint(log: InferenceLog, endpoint: str) -> None:
    """Raise NotFound if the log has no rows of the endpoint; the message names the
    endpoints in the log.
    """
    endpoints = log.endpoints()
    if endpoint in endpoints:
        return
    if endpoints:
        has = f"it has rows of {', '.join(endpoints)}"
    else:
        has = "no rows have been captured yet"
    hint = did_you_mean(endpoint, endpoints, has)
    raise NotFound(
        f"the inference log {log.location.shown} has no rows of endpoint {endpoint!r}{hint}",
    )


def _tables(
    log: InferenceLog,
    view: View,
    columns: Collection[str],
) -> Iterator[pa.Table]:
    """Yield the rows of the view without labels."""
    for hour in log.all_hours(view.endpoint, view.times):
        yield from log.scan(hour, view.times, sorted(columns), () if view.shadows else MARKS)


def _for_duckdb(kind: pa.DataType) -> pa.DataType:
    """Return the type, or a similar type if DuckDB does not support it: half floats and
    untyped columns.
    """
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_null(kind):
        return pa.string()
    if is_list(kind):
        return pa.list_(_for_duckdb(kind.value_type))
    return kind
