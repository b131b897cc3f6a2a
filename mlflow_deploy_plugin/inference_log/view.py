"""The rows of a span as one table: a column for whatever any file has, each row once and beside its label."""

from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.inference_log.columns import concat_tables, conform, group_tables, unify_schemas
from mlflow_deploy_plugin.inference_log.label_join import LABEL, LABEL_NUMBER, EndpointLabels, join_labels
from mlflow_deploy_plugin.inference_log.reader import InferenceLog
from mlflow_deploy_plugin.inference_log.scan import RECEIVED_TIME, SHADOW, scan_hour
from mlflow_deploy_plugin.inference_log.span import TimeRange
from mlflow_deploy_plugin.inference_log.storage import LogFile
from mlflow_deploy_plugin.nearest import did_you_mean
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
_LOOKS = 5


@dataclass(frozen=True)
class View:
    """Which rows.

    Attributes:
        labels: whether the columns `_label` and `_label_number` are there.
        shadows: also what shadows answered.
    """

    endpoint: str
    span: TimeRange = field(default_factory=TimeRange)
    labels: bool = True
    shadows: bool = False


def view_schema(log: InferenceLog, view: View) -> pa.Schema:
    """The columns of the rows: those of any file, since versions differ.

    Raises:
        NotFound: the endpoint has no rows at all; the message names those that have.
    """
    schemas: list[pa.Schema] = []
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in range(_LOOKS):
            files = [file for _, files in _due(log, view) for file in files]
            try:
                schemas = [schema for schema in pool.map(lambda file: _schema(log, file), files) if schema is not None]
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
    """The rows as batches of `schema`, of which only `columns` are read; the others are null.

    Raises:
        OnnxserveError: the log is down.
    """
    for table in view_tables(log, view, columns):
        yield from conform(table, schema).to_batches()


def view_tables(
    log: InferenceLog, view: View, columns: Collection[str], labels: EndpointLabels | None = None
) -> Iterator[pa.Table]:
    """The rows with at least `columns`, where a file has them; `_label` and `_label_number` where one is asked for.

    Args:
        labels: of the endpoint, where the caller has them already.

    Raises:
        OnnxserveError: the log is down.
    """
    needed = set(columns)
    if not needed & {LABEL, LABEL_NUMBER}:
        yield from _tables(log, view, needed)
        return
    labels = labels or EndpointLabels(log.location, view.endpoint, log.unreadable)
    keys = labels.key_columns()
    tables = _tables(log, view, needed | set(_LABEL_NEEDS) | keys)
    for some in group_tables(tables, _LABELLED_ROWS, _LABELLED_BYTES):
        for alike in _by_types(some, keys):
            yield join_labels(concat_tables(alike), labels)


def _by_types(tables: Iterable[pa.Table], columns: Collection[str]) -> Iterable[list[pa.Table]]:
    """Tables that have these columns in the same types: in the type of all, a large whole number may be another one."""
    alike: dict[tuple[str, ...], list[pa.Table]] = {}
    for table in tables:
        types = tuple(str(field.type) for field in table.schema if field.name in columns)
        alike.setdefault(types, []).append(table)
    return alike.values()


def _tables(log: InferenceLog, view: View, columns: Collection[str]) -> Iterator[pa.Table]:
    wanted = _span(log, view).wanted(sorted(columns), view.shadows)
    for folder, _ in _due(log, view):
        yield from scan_hour(log.location, folder, wanted, log.unreadable)


def _span(log: InferenceLog, view: View) -> TimeRange:
    """The span, without what the log leaves out."""
    return view.span if log.since is None else replace(view.span, received_from=max(view.span.received_from, log.since))


def _for_duckdb(kind: pa.DataType) -> pa.DataType:
    """DuckDB takes no half floats, and names no use for a column without a type."""
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_for_duckdb(kind.value_type))
    return kind


def _due(log: InferenceLog, view: View) -> list[tuple[str, list[LogFile]]]:
    """The folders and files that may have rows of the span."""
    window = view.span.window
    hours = (
        log.all_files(view.endpoint)
        if window is None
        else {hour: log.files(hour) for hour in log.hours(view.endpoint, window)}
    )
    due = [(hour.folder, [file for file in files if view.span.holds(file)]) for hour, files in hours.items()]
    return [(folder, files) for folder, files in due if files]


def _schema(log: InferenceLog, file: LogFile) -> pa.Schema | None:
    """None: it makes no sense, which is said when its rows are read."""
    try:
        schema: pa.Schema = pq.read_schema(file.path, filesystem=log.filesystem)
        return schema
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException):
        return None


def require_endpoint(log: InferenceLog, endpoint: str) -> None:
    """Raises:
    NotFound: nothing was captured of it; the message names those that have rows.
    """
    known = log.endpoints()
    if endpoint in known:
        return
    has = f"it has rows of {', '.join(known)}" if known else "nothing was captured so far"
    hint = did_you_mean(endpoint, known, has)
    raise NotFound(f"the inference log {log.shown} has no rows of an endpoint {endpoint!r}{hint}")
