"""Labels: the true values of predictions. A true value becomes known later than its
prediction.

A label identifies its prediction by id (and row, if the request had several rows), or
by the values of key columns. Labels are never changed, only added. If a row has several
labels, the last label is used, ordered by time of receipt, segment and offset, so that
the order of the files does not matter. A label without a value withdraws an earlier
label.

Rows and labels are matched by the text of their join key, in a temporary database of
DuckDB.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from uuid import uuid4
from weakref import finalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.errors import NotInstalled, OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.tabular.streams import group_tables
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.scan import read_folder
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation
from mlflow_deploy_plugin.serve.inference_log.tables import TIME, concat_tables, conform
from mlflow_deploy_plugin.serve.runtime.log_columns import as_key, as_text

LABELS = "_labels"
LABEL = "_label"
LABEL_NUMBER = "_label_number"
SCHEMA = pa.schema(
    [
        ("_prediction_id", pa.string()),
        ("_row", pa.int32()),
        ("_key", pa.string()),
        (LABEL, pa.string()),
        (LABEL_NUMBER, pa.float64()),
        ("_received_time", TIME),
        ("_segment", pa.string()),
        ("_offset", pa.int64()),
    ],
)
"""The columns of labels, with `_prediction_id` or `_key`. Without `_row`, a label
applies to the whole request.
"""
MEMORY_MB = 128
"""The memory of the database. Larger tables are in a temporary folder."""
MOST_KEY_SETS = 64
"""The maximum number of sets of key columns. Each row is looked up by each set; callers
may send many.
"""
_BATCH_ROWS = 65_536
_BATCH_BYTES = 32 * 2**20
# as booleans are written in CSV files
_TRUTH: Mapping[str | float, float] = {
    "true": 1.0,
    "false": 0.0,
}
_TEXT = r'"(?:[^"\\]|\\.)*"'
_KEY_PAIR = rf"({_TEXT}):(?:{_TEXT}|null)"
_TABLES = """
    CREATE TABLE labels (
        name UBIGINT, key_set VARCHAR,
        received STRUCT(time TIMESTAMPTZ, segment VARCHAR, position BIGINT),
        label STRUCT(text VARCHAR, number DOUBLE)
    );
    CREATE TABLE found (name UBIGINT)
"""
_ADD = """
    INSERT INTO labels SELECT
        hash(CASE
            WHEN _prediction_id IS NULL THEN _key
            WHEN _row IS NULL THEN 'id ' || _prediction_id
            ELSE 'row ' || _row || ' ' || _prediction_id
        END),
        CASE WHEN _prediction_id IS NULL THEN regexp_replace(_key, $pair, '\\1', 'g') END,
        row(_received_time, _segment, _offset),
        row(_label, _label_number)
    FROM given WHERE _prediction_id IS NOT NULL OR _key IS NOT NULL
"""
_KEYS = """
    SELECT key_set FROM labels WHERE key_set IS NOT NULL
    GROUP BY key_set ORDER BY count(*) DESC, min(rowid) LIMIT $limit
"""
_JOIN = """
    WITH names AS (SELECT place, hash(text) AS name FROM given)
    SELECT label.text, label.number
    FROM range($rows) AS rows (place) LEFT JOIN (
        SELECT place, arg_max(label, received) AS label
        FROM names JOIN labels USING (name) GROUP BY place
    ) USING (place) ORDER BY place
"""
_MARK = """
    INSERT INTO found SELECT DISTINCT name
    FROM labels SEMI JOIN (SELECT hash(text) AS name FROM given) USING (name)
    ANTI JOIN found USING (name)
"""
_COUNT = "SELECT count(DISTINCT name) FROM labels"
_COUNT_FOUND = "SELECT count(*) FROM found"
_NAMES = pa.schema([("place", pa.int64()), ("text", pa.string())])


@dataclass(frozen=True)
class Label:
    """The true value of one row, or of all rows of a request.

    Attributes:
        prediction_id: `X-Prediction-Id` of the answer; None if `key` identifies the
            row.
        row: the row of the request, from 0; None for all rows.
        key: the values of the row's key columns by name, or a JSON object of these
            values.
        label: a text, number or boolean; None withdraws an earlier label.
        received_us: the time of receipt, in microseconds since 1970.
        segment, offset: identify duplicates. `offset` is the frame's offset plus the
            label's position in the frame.
    """

    prediction_id: str | None
    row: int | None
    key: Mapping[str, object] | str | None
    label: str | float | bool | None
    received_us: int
    segment: str = ""
    offset: int = 0


def labels_table(entries: Sequence[Label]) -> pa.Table:
    """Return the labels as a table of `SCHEMA`. Keys are in the format of
    `canonical_key`, whether the label has a mapping or a JSON object.
    """
    rows = []
    for entry in entries:
        key = json.loads(entry.key) if isinstance(entry.key, str) else entry.key
        canonical = None if key is None else canonical_key(key)
        rows.append(
            {
                "_prediction_id": entry.prediction_id,
                "_row": entry.row,
                "_key": canonical,
                LABEL: as_text(entry.label),
                LABEL_NUMBER: as_number(entry.label),
                "_received_time": entry.received_us,
                "_segment": entry.segment,
                "_offset": entry.offset,
            },
        )
    return pa.Table.from_pylist(rows, SCHEMA)


def canonical_key(values: Mapping[str, object]) -> str:
    """Return the key in the format of the log: JSON with sorted names and every value
    as text. 7, 7.0 (a model may convert numbers to floats) and the text 7 of a CSV file
    are the same key, and so are true, True and 1.
    """
    texts = {str(name): as_key(value) for name, value in values.items()}
    return json.dumps(
        texts,
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )


def as_number(value: str | float | bool | None) -> float | None:
    """Return a label's value as a number (1 for true, 0 for false), or None if the
    value is not a number.
    """
    if value is None:
        return None
    try:
        number = float(_TRUTH.get(value, value))
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def labels_folder(location: LogLocation, endpoint: str) -> str:
    return f"{location.root}/{LABELS}/{storage.endpoint_folder(endpoint)}"


def write_labels(
    location: LogLocation,
    endpoint: str,
    day: str,
    labels: pa.Table,
) -> None:
    """Write labels received on a day (2013-07-01) to the log; raise OnnxserveError if
    the log is unreachable.
    """
    name = f"{LABELS}/{storage.endpoint_folder(endpoint)}/date={day}/file-{uuid4().hex}.parquet"
    with storage.wrap_log_errors(location):
        storage.write_file(location, name, storage.encode_parquet(labels))


def read_labels(
    location: LogLocation,
    endpoint: str,
    unreadable: dict[str, str],
) -> Iterator[pa.Table]:
    """Yield the labels of an endpoint as tables of `SCHEMA`; labels may be repeated."""
    for _, folder in storage.list_days(location, labels_folder(location, endpoint)):
        yield from read_folder(
            location,
            folder,
            unreadable,
            lambda table: conform(table, SCHEMA),
            required=SCHEMA.names,
        )


class EndpointLabels:
    """The labels of an endpoint, tables of `SCHEMA`, in a temporary database. `labels`
    are read at the first use.

    Raises OnnxserveError if the temporary folder cannot be written, and NotInstalled if
    there are labels and DuckDB is missing.
    """

    def __init__(self, labels: Iterable[pa.Table] = ()) -> None:
        self._unread = labels
        self._database: Any = None  # a connection of DuckDB, if there are labels

    def add(self, labels: Iterable[pa.Table]) -> None:
        """Add labels. All labels must be added before the first call of another
        method.
        """
        filled = (table for table in labels if len(table))
        for tables in group_tables(filled, _BATCH_ROWS, _BATCH_BYTES):
            if self._database is None:
                try:
                    import duckdb  # The agent and the base installation have no DuckDB.
                except ImportError:
                    raise NotInstalled(
                        "labels are joined by DuckDB: pip install 'mlflow-onnxserve[monitoring]'"
                    ) from None
                try:
                    folder = tempfile.mkdtemp(prefix="onnxserve-labels-")
                except OSError as error:
                    raise _no_room(error) from None
                finalize(self, shutil.rmtree, folder, ignore_errors=True)
                self._database = duckdb.connect(
                    f"{folder}/labels.duckdb",
                    config={
                        "memory_limit": f"{MEMORY_MB}MB",
                        "threads": "2",
                        "temp_directory": folder,
                    },
                )
                self._run(_TABLES)
            self._run(_ADD, pa.concat_tables(tables), pair=_KEY_PAIR)

    def join(self, *parts: pa.Table) -> pa.Table:
        """Return the rows of the parts with the columns `_label` (text) and
        `_label_number` (float64), which are null without a label. The rows must have
        `_prediction_id`, `_row` and the key columns.
        """
        rows = concat_tables(parts)
        if self._is_empty:
            texts = pa.nulls(len(rows), pa.string())
            numbers = pa.nulls(len(rows), pa.float64())
        else:
            # The names are those of the parts, because `concat_tables` may round the
            # values of a key.
            texts, numbers = self._run(_JOIN, self._names_of(parts), rows=len(rows)).columns
        return rows.append_column(LABEL, texts).append_column(LABEL_NUMBER, numbers)

    def mark(self, rows: pa.Table) -> None:
        """Record which labels have one of the rows."""
        if not self._is_empty:
            self._run(_MARK, self._names_of([rows]))

    @property
    def count(self) -> int:
        """The number of distinct join keys."""
        return 0 if self._is_empty else self._run(_COUNT).column(0)[0].as_py()

    @property
    def matched(self) -> int:
        """The number of distinct join keys that have a row among the rows of `mark`."""
        return 0 if self._is_empty else self._run(_COUNT_FOUND).column(0)[0].as_py()

    @property
    def key_columns(self) -> set[str]:
        return set().union(*self._key_sets)

    @cached_property
    def _key_sets(self) -> list[list[str]]:
        """The most frequent sets of key columns."""
        if self._is_empty:
            return []
        key_sets = []
        for key_set in self._run(_KEYS, limit=MOST_KEY_SETS).column(0).to_pylist():
            with suppress(ValueError):  # An invalid key matches no row.
                key_sets.append(json.loads(f"[{key_set[1:-1]}]"))
        return key_sets

    @property
    def _is_empty(self) -> bool:
        self.add(self._unread)
        self._unread = ()
        return self._database is None

    def _names_of(self, parts: Iterable[pa.Table]) -> pa.RecordBatchReader:
        """Return the names by which labels may identify the rows of the parts, with the
        places of the rows.
        """
        # A statement cannot ask for the key sets while it reads the batches.
        key_sets = self._key_sets

        def batches() -> Iterator[pa.RecordBatch]:
            first = 0
            for rows in parts:
                places = pa.array(np.arange(first, first + len(rows)))
                first += len(rows)
                for texts in row_names(rows, key_sets):
                    yield from pa.table([places, texts], _NAMES).to_batches()

        return pa.RecordBatchReader.from_batches(_NAMES, batches())

    def _run(
        self,
        statement: str,
        given: pa.Table | pa.RecordBatchReader | None = None,
        **parameters: object,
    ) -> Any:
        """Return the result of a statement, in which `given` is a table, or None."""
        import duckdb

        try:
            if given is not None:
                self._database.register("given", given)
            relation = self._database.sql(statement, params=parameters)
            return None if relation is None else relation.to_arrow_table()
        except duckdb.Error as error:
            raise _no_room(error) from None


def _no_room(error: Exception) -> OnnxserveError:
    return OnnxserveError(
        f"the index of the labels cannot be written to the temporary folder: {one_line(error)}",
    )


def row_names(rows: pa.Table, key_sets: Iterable[Sequence[str]] = ()) -> Iterator[pa.Array]:
    """Yield the names of the rows by prediction id, by id and row, and by each set of
    key columns in the format of `canonical_key`. A set with a column that is missing or
    nested has no names.
    """
    if "_prediction_id" in rows.column_names:
        ids = rows.column("_prediction_id").cast(pa.string())
        yield pc.binary_join_element_wise("id", ids, " ")
        yield pc.binary_join_element_wise("row", rows.column("_row").cast(pa.string()), ids, " ")
    usable = {field.name for field in rows.schema if not pa.types.is_nested(field.type)}
    for columns in key_sets:
        if not usable.issuperset(columns):
            continue
        pieces: list[pa.Array | str] = []
        for name in columns:
            mark = "," if pieces else "{"
            encoded = rows.column(name).combine_chunks()
            if pa.types.is_float16(encoded.type):
                encoded = encoded.cast(pa.float32())
            if not pa.types.is_dictionary(encoded.type):
                encoded = encoded.dictionary_encode()
            values = encoded.dictionary
            # to_pylist would convert a float32 0.1 to 0.10000000149011612.
            if pa.types.is_floating(values.type):
                plain = values.to_numpy(zero_copy_only=False)
            else:
                plain = values.to_pylist()
            texts = pa.array(
                [json.dumps(as_key(value), ensure_ascii=False) for value in plain],
                pa.string(),
            )
            pieces += [
                f"{mark}{json.dumps(name, ensure_ascii=False)}:",
                pc.fill_null(texts.take(encoded.indices), "null"),
            ]
        yield pc.binary_join_element_wise(*pieces, "}", "")
