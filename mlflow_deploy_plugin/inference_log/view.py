"""The rows of a time range as one table: a column for whatever any file has, each row once and with its label."""

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import NotFound, did_you_mean
from mlflow_deploy_plugin.inference_log.columns import concat_tables, conform, group_tables, unify_schemas
from mlflow_deploy_plugin.inference_log.label_join import LabelMatches, join_labels, key_columns
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, EndpointLabels
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.scan import RECEIVED_TIME, SHADOW, RowFilter, scan_hour
from mlflow_deploy_plugin.inference_log.storage import LogFile
from mlflow_deploy_plugin.inference_log.windows import TimeRange, microseconds
from mlflow_deploy_plugin.runtime import EVENT_TIME

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


@dataclass(frozen=True)
class View:
    """A selection of an endpoint's rows.

    Attributes:
        labels: with the columns `_label` and `_label_number`.
        shadows: also rows that shadows answered.
    """

    endpoint: str
    times: TimeRange = field(default_factory=TimeRange)
    labels: bool = True
    shadows: bool = False


def view_schema(log: InferenceLog, view: View) -> pa.Schema:
    """Return the columns of the rows: those of any file, since versions differ.

    Raises:
        NotFound: the endpoint has no rows at all; the message names the endpoints that have.
    """

    def read_schema(file: LogFile) -> pa.Schema | None:
        try:
            return pq.read_schema(file.path, filesystem=log.location.filesystem)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException):
            return None  # it cannot be understood, which is reported when its rows are read

    schemas: list[pa.Schema] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in range(_TRIES):
            files = [file for _, files in _due_files(log, view) for file in files]
            try:
                schemas = [schema for schema in pool.map(read_schema, files) if schema is not None]
                break
            except FileNotFoundError:  # compacted or expired since it was listed
                continue
    if not schemas:
        require_endpoint(log, view.endpoint)
    own = _FIRST | _LAST
    model = {found.name: _for_duckdb(found.type) for found in unify_schemas(schemas) if found.name not in own}
    fields = _FIRST | model | _LAST
    if not view.labels:
        del fields[LABEL], fields[LABEL_NUMBER]
    return pa.schema(fields.items())


def view_rows(log: InferenceLog, view: View, schema: pa.Schema, columns: Collection[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows as batches of `schema`. Only `columns` are read; the others are null.

    Raises:
        OnnxserveError: the log is down.
    """
    for table in view_tables(log, view, columns):
        yield from conform(table, schema).to_batches()


def view_tables(
    log: InferenceLog, view: View, columns: Collection[str], labels: EndpointLabels | None = None
) -> Iterator[pa.Table]:
    """Yield the rows with at least `columns`, if a file has them. Labels are joined if `columns` has one of theirs.

    Args:
        labels: of the endpoint, if the caller has them already.

    Raises:
        OnnxserveError: the log is down.
    """
    if not {LABEL, LABEL_NUMBER} & set(columns):
        yield from _tables(log, view, set(columns))
        return
    labels = labels or EndpointLabels(log.location, view.endpoint, log.unreadable)
    keys = key_columns(labels)
    for tables in group_tables(_tables(log, view, {*columns, *_LABEL_NEEDS, *keys}), _LABELLED_ROWS, _LABELLED_BYTES):
        # only tables with keys of the same types are put together: in another type a large whole number may change
        alike: dict[tuple[str, ...], list[pa.Table]] = {}
        for table in tables:
            types = tuple(str(field.type) for field in table.schema if field.name in keys)
            alike.setdefault(types, []).append(table)
        for some in alike.values():
            yield join_labels(concat_tables(some), labels)


def match_labels(log: InferenceLog, endpoint: str, matches: LabelMatches) -> None:
    """Match the labels with the rows of the whole log.

    Raises:
        OnnxserveError: the log is down.
    """
    if matches.count:
        for rows in view_tables(log, View(endpoint, shadows=True), [EVENT_TIME, "_row", *matches.columns]):
            matches.match(rows)


def require_endpoint(log: InferenceLog, endpoint: str) -> None:
    """Raise NotFound if the log has no rows of the endpoint; the message names the endpoints that it has."""
    known = log.endpoints()
    if endpoint in known:
        return
    has = f"it has rows of {', '.join(known)}" if known else "nothing was captured so far"
    hint = did_you_mean(endpoint, known, has)
    raise NotFound(f"the inference log {log.shown} has no rows of an endpoint {endpoint!r}{hint}")


def _tables(log: InferenceLog, view: View, columns: Collection[str]) -> Iterator[pa.Table]:
    times = view.times
    if log.since is not None:
        times = replace(times, received_from=max(times.received_from, log.since))
    rows = RowFilter(
        sorted(columns),
        microseconds(times.start),
        microseconds(times.end),
        view.shadows,
        times.received_us,
        lambda file: times.may_have_rows(file.changed),
    )
    for folder, _ in _due_files(log, view):
        yield from scan_hour(log.location, folder, rows, log.unreadable)


def _due_files(log: InferenceLog, view: View) -> list[tuple[str, list[LogFile]]]:
    """Return the folders and files that may have rows of the time range."""
    window = view.times.window
    hours = (
        log.all_files(view.endpoint)
        if window is None
        else {hour: log.files(hour) for hour in log.hours(view.endpoint, window)}
    )
    due = [
        (hour.folder, [file for file in files if view.times.may_have_rows(file.changed)])
        for hour, files in hours.items()
    ]
    return [(folder, files) for folder, files in due if files]


def _for_duckdb(kind: pa.DataType) -> pa.DataType:
    """Return a type that DuckDB takes: it knows no half floats, and no column without a type."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_for_duckdb(kind.value_type))
    return kind
