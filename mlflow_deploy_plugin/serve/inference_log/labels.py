"""Labels: the true values of predictions. A true value becomes known later than its
prediction.

A label identifies its prediction by id (and row, if the request had several rows), or
by the values of key columns. Labels are never changed, only added. If a row has several
labels, the last label is used, ordered by time of receipt, segment and offset, so that
the order of the files does not matter. A label without a value withdraws an earlier
label.

Rows and labels are matched by hashes of join keys. The *kind* of a join key is the
tuple of its column names. The first join streams the labels past the rows. The second
join indexes the labels, for all later joins. A large index is stored in temporary files
by ranges of hashes, so that memory does not grow with the number of labels.
"""

import json
import math
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.messages import one_line
from mlflow_deploy_plugin.core.tabular.streams import group_tables
from mlflow_deploy_plugin.serve.inference_log import storage
from mlflow_deploy_plugin.serve.inference_log.scan import read_folder
from mlflow_deploy_plugin.serve.inference_log.storage import LogLocation
from mlflow_deploy_plugin.serve.inference_log.tables import (
    TIME,
    combine_hashes,
    conform,
    contains,
    distinct,
    hash_ids,
    splitmix64,
)
from mlflow_deploy_plugin.serve.runtime.feeds import Array
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
MOST_KEPT_BYTES = 32 * 2**20
"""The maximum size of labels in memory. Larger labels are streamed for the first join
and then indexed.
"""
MOST_HELD_LABELS = 500_000
"""The number of labels that are sorted in memory. A larger index is sorted in runs of
this size, in temporary files.
"""
_BATCH_ROWS = 65_536
# as booleans are written in CSV files
_TRUTH: Mapping[str | float, float] = {
    "true": 1.0,
    "false": 0.0,
}
_CLOCK_SKEW = timedelta(days=1)
"""The maximum clock difference of two machines, by which a label may appear to precede
its prediction.
"""
_ORDER = ("_received_time", "_segment", "_offset")
_INDEXED = pa.schema(
    [
        *(SCHEMA.field(name) for name in (*_ORDER, LABEL, LABEL_NUMBER)),
        ("_name", pa.uint64()),
    ],
)
_BY_ID = ("_prediction_id",)
_BY_ROW = ("_prediction_id", "_row")
MOST_KEY_SETS = 64
"""The maximum number of sets of key columns. Each row is looked up by each set; callers
may send many.
"""
_MOST_COUNTED_SETS = 4096
_HELD_KINDS = 8
_HELD_COLUMNS = 16
_TEXT = r'"(?:[^"\\]|\\.)*"'
_KEY_PAIR = rf"({_TEXT}):(?:{_TEXT}|null)"

Kind = tuple[str, ...]


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
    return f"{location.root}/{LABELS}/endpoint={endpoint}"


def write_labels(
    location: LogLocation,
    endpoint: str,
    day: str,
    labels: pa.Table,
) -> None:
    """Write labels received on a day (2013-07-01) to the log; raise OnnxserveError if
    the log is unreachable.
    """
    name = f"{LABELS}/endpoint={endpoint}/date={day}/file-{uuid4().hex}.parquet"
    with storage.wrap_log_errors(location):
        storage.write_file(location, name, storage.encode_parquet(labels))


def read_labels(
    location: LogLocation,
    endpoint: str,
    unreadable: dict[str, str],
    since: datetime | None = None,
    columns: Sequence[str] = SCHEMA.names,
) -> Iterator[pa.Table]:
    """Yield the labels of an endpoint as tables of `SCHEMA`; labels may be repeated.
    Labels before `since` that identify a prediction by id may be skipped. Columns that
    are not in `columns` are null.
    """
    for day, folder in storage.list_days(location, labels_folder(location, endpoint)):
        is_early = since is not None and day + storage.DAY <= since
        for table in read_folder(
            location,
            folder,
            unreadable,
            lambda table: conform(table, SCHEMA),
            lambda names: columns,
            SCHEMA.names,
        ):
            if is_early:
                table = table.filter(pc.is_valid(table.column("_key")))
            yield table


class EndpointLabels:
    """The labels of an endpoint for repeated joins. Few labels are kept in memory; many
    labels are indexed once.
    """

    def __init__(
        self,
        location: LogLocation,
        endpoint: str,
        unreadable: dict[str, str],
    ) -> None:
        self._location = location
        self._endpoint = endpoint
        self._unreadable = unreadable
        self._was_joined = False
        self._index: LabelIndex | None = None

    def latest(self, rows: "RowKeys") -> pa.Table:
        """Return the last label of each key in `rows`, with the hash of the key in
        `_name`. The first call streams the labels, which takes a third of the time of
        building an index.
        """
        if self._index is None and not self._was_joined:
            self._was_joined = True
            return self._read_index(rows.earliest_label, rows).latest(rows)
        return self.index.latest(rows)

    @property
    def index(self) -> "LabelIndex":
        if self._index is None:
            self._index = self._read_index()
        return self._index

    def _read_index(
        self,
        since: datetime | None = None,
        rows: "RowKeys | None" = None,
    ) -> "LabelIndex":
        """Read the labels once and return an index. Sets of key columns are counted
        only if there are too many.
        """
        with suppress(_TooManyKeySets):
            return LabelIndex(self.batches(since), None, rows)
        return LabelIndex(self.batches(since), self.key_sets, rows)

    @cached_property
    def key_sets(self) -> set[Kind]:
        """The most frequent sets of key columns. To limit the memory, the rarest sets
        are dropped during the count.
        """
        counts = Counter[Kind]()
        for table in _grouped(self.batches(columns=["_key"])):
            kinds, kind_of_key = _key_kinds(table.column("_key").drop_null())
            key_counts = np.bincount(kind_of_key, minlength=len(kinds)).tolist()
            counts.update(dict(zip(kinds, key_counts, strict=True)))
            if len(counts) > _MOST_COUNTED_SETS:
                counts = Counter(dict(counts.most_common(_MOST_COUNTED_SETS // 2)))
        return {kind for kind, _ in counts.most_common(MOST_KEY_SETS)}

    @property
    def key_columns(self) -> set[str]:
        return set().union(*self.key_sets)

    def batches(
        self,
        since: datetime | None = None,
        columns: Sequence[str] = SCHEMA.names,
    ) -> Iterator[pa.Table]:
        """Yield the labels as tables of `SCHEMA`. Labels kept in memory are complete.
        Otherwise, columns that are not in `columns` are null, and labels before `since`
        may be skipped if they identify a prediction by id.
        """
        if self._kept_tables is None:
            yield from read_labels(self._location, self._endpoint, self._unreadable, since, columns)
        else:
            yield from self._kept_tables

    @cached_property
    def _kept_tables(self) -> list[pa.Table] | None:
        """All labels, or None if the labels are too many to keep in memory."""
        tables = []
        total_bytes = 0
        for labels in read_labels(self._location, self._endpoint, self._unreadable):
            tables.append(labels)
            total_bytes += labels.nbytes
            if total_bytes > MOST_KEPT_BYTES:
                return None
        return tables


def join_labels(table: pa.Table, labels: EndpointLabels) -> pa.Table:
    """Return the table with the columns `_label` (text) and `_label_number` (float64),
    which are null without a label. The table must have `_prediction_id`, `_row`,
    `_received_time` and the key columns.
    """
    rows = RowKeys(table)
    candidates = labels.latest(rows)
    if len(candidates):
        label_rows = rows.choose_labels(candidates)
        texts = label_rows.column(LABEL)
        numbers = label_rows.column(LABEL_NUMBER)
    else:
        texts = pa.nulls(len(table), pa.string())
        numbers = pa.nulls(len(table), pa.float64())
    return table.append_column(LABEL, texts).append_column(LABEL_NUMBER, numbers)


class _TooManyKeySets(Exception):
    """The labels use more sets of key columns than `MOST_KEY_SETS`."""


class LabelIndex:
    """The last label of each join key, ascending by the key's hash. Labels are limited
    to the key columns in `key_sets` and to keys in `rows` (None: no limit). Raises
    _TooManyKeySets above `MOST_KEY_SETS` without `key_sets`.
    """

    def __init__(
        self,
        labels: Iterable[pa.Table],
        key_sets: set[Kind] | None,
        rows: "RowKeys | None" = None,
    ) -> None:
        self.kinds: set[Kind] = set()
        self._key_sets = key_sets
        self._seen = set[Kind]()
        self._parts = _merge(
            chain.from_iterable(self._named(table, rows) for table in _grouped(labels)),
        )

    @property
    def names(self) -> Array:
        """The hashes of the distinct keys, [D] uint64, ascending."""
        return np.concatenate(
            [
                np.empty(0, np.uint64),
                *map(_names, self._parts),
            ]
        )

    def latest(self, rows: "RowKeys") -> pa.Table:
        """Return the last label of each key in `rows`, with the hash of the key in
        `_name`.
        """
        names = [_names(part) for part in self._parts]
        tables = [_INDEXED.empty_table()]
        for kind in self.kinds:
            for part, indices in zip(self._parts, rows.find(kind, names), strict=True):
                if len(indices):
                    tables.append(part.take(pa.array(indices)))
        return pa.concat_tables(tables)

    def _named(
        self,
        labels: pa.Table,
        rows: "RowKeys | None",
    ) -> Iterator[pa.Table]:
        """Yield labels with the hash of their key in `_name`. With `rows`, yield only
        labels that match a row.
        """
        for kind, indices, hashes in label_keys(labels):
            if kind not in (_BY_ID, _BY_ROW):
                if self._key_sets is None:
                    self._seen.add(kind)
                    if len(self._seen) > MOST_KEY_SETS:
                        raise _TooManyKeySets
                elif kind not in self._key_sets:
                    continue
            if rows is not None:
                is_row_key = rows.contain(kind, hashes)
                indices = indices[is_row_key]
                hashes = hashes[is_row_key]
            if len(indices):
                self.kinds.add(kind)
                part = labels.select([*_ORDER, LABEL, LABEL_NUMBER]).take(pa.array(indices))
                yield part.append_column("_name", pa.array(hashes))


def _merge(named: Iterable[pa.Table]) -> list[pa.Table]:
    """Return the last label of each `_name` in tables of about `MOST_HELD_LABELS`
    labels, ascending by `_name`. This is an external merge sort: sorted runs, then one
    table for each range of `_name`.
    """
    runs: list[pa.Table] = []
    for tables in group_tables(named, MOST_HELD_LABELS, MOST_KEPT_BYTES):
        run = _latest_labels(pa.concat_tables(tables))
        if runs:
            run = _spill(run)
        runs.append(run)
    if len(runs) < 2:
        return runs
    bounds = np.arange(1, len(runs), dtype=np.uint64) * np.uint64(2**64 // len(runs))
    parts_by_run = []
    for run in runs:
        cuts = [0, *np.searchsorted(_names(run), bounds).tolist(), len(run)]
        parts_by_run.append([run.slice(low, high - low) for low, high in pairwise(cuts)])
    ranges = map(pa.concat_tables, zip(*parts_by_run, strict=True))
    return [_spill(_latest_labels(labels)) for labels in ranges if len(labels)]


def _spill(table: pa.Table) -> pa.Table:
    """Return the same table as one chunk of an unnamed temporary file, which is deleted
    with the table.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="onnxserve-labels-") as folder:
            path = f"{folder}/labels.arrow"
            with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table.combine_chunks())
            return pa.ipc.open_file(pa.memory_map(path)).read_all()
    except OSError as error:
        reason = one_line(error)
        raise OnnxserveError(
            f"the index of the labels cannot be written to the temporary folder: {reason}",
        ) from None


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Combine small tables into larger tables, because each table takes about twenty
    calls to process.
    """
    return map(pa.concat_tables, group_tables(tables, _BATCH_ROWS, MOST_KEPT_BYTES))


def _names(labels: pa.Table) -> Array:
    return np.asarray(labels.column("_name"))


class RowKeys:
    """The hashed join keys of rows, for each kind of key among the labels."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._texts = lru_cache(_HELD_COLUMNS)(lambda name: _key_texts(table.column(name)))
        self._kinds: dict[Kind, tuple[Array, Array]] = {}
        self._matched: set[Kind] = set()

    @property
    def earliest_label(self) -> datetime | None:
        """The earliest time of a label that can identify one of these rows by
        prediction id; None if there are no rows or no times of receipt.
        """
        if not len(self._table) or "_received_time" not in self._table.column_names:
            return None
        first: datetime | None = pc.min(self._table.column("_received_time")).cast(TIME).as_py()
        return None if first is None else first - _CLOCK_SKEW

    def choose_labels(self, labels: pa.Table) -> pa.Table:
        """Return the last label of each row, [N], from the result of
        `LabelIndex.latest`, or null.
        """
        # After sorting, the last label has the highest index.
        labels = labels.sort_by([(name, "ascending") for name in (*_ORDER, "_name")])
        names = labels.column("_name").to_numpy()
        by_name = np.argsort(names)
        label_of_row = np.full(len(self._table), -1, dtype=np.int64)  # -1: no label
        for kind in self._matched:
            order, hashes = self._hashes(kind)
            positions = np.minimum(
                np.searchsorted(names[by_name], hashes),
                len(names) - 1,
            )
            nearest = by_name[positions]
            label_of_row[order] = np.maximum(
                label_of_row[order],
                np.where(names[nearest] == hashes, nearest, -1),
            )
        return labels.take(pa.array(label_of_row, mask=label_of_row < 0))

    def contain(self, kind: Kind, hashes: Array) -> Array:
        """Return, for each hash of a key, True if a row has this key: [M] bool for [M]
        uint64. `choose_labels` considers only kinds with such a key.
        """
        order = np.argsort(hashes)  # Ascending values are found in a third of the time.
        is_row_key = np.empty(len(hashes), bool)
        is_row_key[order] = contains(self._hashes(kind)[1], hashes[order])
        self._keep(kind, bool(is_row_key.any()))
        return is_row_key

    def find(self, kind: Kind, parts: Sequence[Array]) -> list[Array]:
        """Return, for each part of the names, the indices of the names that are the key
        of a row. The parts are not empty, ascending and disjoint. The work grows with
        the number of rows, not with the number of names. `choose_labels` considers only
        kinds with such a name.
        """
        _, hashes = self._hashes(kind)
        indices = []
        for names in parts:
            start = np.searchsorted(hashes, names[0])
            end = np.searchsorted(hashes, names[-1], "right")
            within = hashes[start:end]
            matches = within[contains(names, within)]
            indices.append(distinct(np.searchsorted(names, matches)))
        self._keep(kind, any(map(len, indices)))
        return indices

    def _keep(self, kind: Kind, is_matched: bool) -> None:
        """Record that a label matches a row by this kind of key, or forget the hashes
        if there are many kinds.
        """
        if is_matched:
            self._matched.add(kind)
        elif kind not in self._matched and len(self._kinds) > _HELD_KINDS:
            del self._kinds[kind]  # Save memory: there may be thousands of kinds.

    def _hashes(self, kind: Kind) -> tuple[Array, Array]:
        """Return the order of the rows by key hash, [N] int64, and the sorted hashes,
        [N] uint64. Both arrays are empty if a key column is missing or nested.
        """
        if kind not in self._kinds:
            hashes = self._compute_hashes(kind)
            order = np.argsort(hashes)
            self._kinds[kind] = order, hashes[order]
        return self._kinds[kind]

    def _compute_hashes(self, kind: Kind) -> Array:
        """Return the hash of each row's key, [N] uint64; an empty array if a key column
        is missing or nested.
        """
        table = self._table
        if not len(table) or not set(kind) <= set(table.column_names):
            return np.empty(0, np.uint64)
        if kind == _BY_ID:
            return hash_ids(table.column("_prediction_id"))
        if kind == _BY_ROW:
            ids = hash_ids(table.column("_prediction_id"))
            return combine_hashes(ids, _unsigned(table.column("_row")))
        if any(pa.types.is_nested(table.schema.field(name).type) for name in kind):
            return np.empty(0, np.uint64)
        # The keys in the format of `canonical_key`.
        pieces: list[pa.Array | str] = []
        for name in sorted(kind):
            texts = self._texts(name)
            mark = "," if pieces else "{"
            pieces += [
                pa.scalar(f"{mark}{json.dumps(name, ensure_ascii=False)}:"),
                pc.fill_null(texts.dictionary.take(texts.indices), "null"),
            ]
        keys = pc.binary_join_element_wise(*pieces, pa.scalar("}"), "")
        return _hash_keys(pa.chunked_array([keys]))


class LabelMatches:
    """The distinct join keys of labels, each with a flag that is True if a row has the
    key; 9 bytes per key.
    """

    def __init__(self, index: LabelIndex | None = None) -> None:
        self._parts = [] if index is None else [index.names]
        # a copy, because `add` extends the set
        self._kinds = set[Kind]() if index is None else set(index.kinds)

    def add(self, labels: pa.Table) -> None:
        """Add the keys of labels, a table of `SCHEMA`. All keys must be added before
        the first call of `match`.
        """
        for kind, _, hashes in label_keys(labels):
            self._kinds.add(kind)
            self._parts.append(distinct(np.sort(hashes)))

    def match(self, table: pa.Table) -> None:
        """Mark the keys that a row of the table has."""
        rows = RowKeys(table)
        for kind in self._kinds:
            (indices,) = rows.find(kind, [self._names])
            self._is_found[indices] = True

    @property
    def columns(self) -> set[str]:
        return set().union(*self._kinds)

    @property
    def count(self) -> int:
        return len(self._names)

    @property
    def matched(self) -> int:
        return int(self._is_found.sum())

    @cached_property
    def _names(self) -> Array:
        hashes = np.concatenate(
            [
                np.empty(0, np.uint64),
                *self._parts,
            ]
        )
        return distinct(np.sort(hashes))

    @cached_property
    def _is_found(self) -> Array:
        return np.zeros(len(self._names), dtype=bool)


def label_keys(labels: pa.Table) -> Iterator[tuple[Kind, Array, Array]]:
    """Yield the kinds of keys among the labels, each with the indices of its labels,
    [M], and the key hashes, [M].
    """
    has_id = np.asarray(pc.is_valid(labels.column("_prediction_id")))
    has_row = np.asarray(pc.is_valid(labels.column("_row")))
    has_key = np.asarray(pc.is_valid(labels.column("_key"))) & ~has_id
    by_id = np.flatnonzero(has_id & ~has_row)
    if by_id.size:
        yield _BY_ID, by_id, hash_ids(labels.column("_prediction_id").take(pa.array(by_id)))
    by_row = np.flatnonzero(has_id & has_row)
    if by_row.size:
        part = labels.select(_BY_ROW).take(pa.array(by_row))
        ids = hash_ids(part.column("_prediction_id"))
        yield _BY_ROW, by_row, combine_hashes(ids, _unsigned(part.column("_row")))
    if has_key.any():
        by_key = np.flatnonzero(has_key)
        texts = labels.column("_key").take(pa.array(by_key))
        hashes = _hash_keys(texts)
        kinds, kind_of_key = _key_kinds(texts)
        for number, kind in enumerate(kinds):
            of_kind = np.flatnonzero(kind_of_key == number)
            yield kind, by_key[of_kind], hashes[of_kind]


def _key_kinds(texts: pa.ChunkedArray) -> tuple[list[Kind], Array]:
    """Return the distinct kinds of keys, and for each of the M keys the index of its
    kind, [M].
    """
    shapes = (
        pc.replace_substring_regex(texts, _KEY_PAIR, r"\1").combine_chunks().dictionary_encode()
    )
    kind_of_key = np.asarray(shapes.indices)
    _, first_keys = np.unique(kind_of_key, return_index=True)
    kinds: list[Kind] = []
    for position in first_keys.tolist():
        key = texts[position].as_py()
        try:
            values = json.loads(key)
        except ValueError:
            values = None
        # An invalid key gets a separate kind, which matches no row.
        kind = tuple(values) if isinstance(values, dict) else (key,)
        kinds.append(kind)
    return kinds, kind_of_key


def _hash_keys(texts: pa.ChunkedArray) -> Array:
    """Return the hashes of keys, [N] uint64. A key and a prediction id with the same
    text have different hashes.
    """
    return splitmix64(hash_ids(texts))


def _key_texts(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """Return the N values of a column as JSON, in the format of keys."""
    encoded = column.combine_chunks()
    if pa.types.is_float16(encoded.type):
        encoded = encoded.cast(pa.float32())
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    values = encoded.dictionary
    # to_pylist would convert a float32 0.1 to 0.10000000149011612.
    is_float = pa.types.is_floating(values.type)
    plain = values.to_numpy(zero_copy_only=False) if is_float else values.to_pylist()
    texts = pa.array(
        [json.dumps(as_key(value), ensure_ascii=False) for value in plain],
        pa.string(),
    )
    return pa.DictionaryArray.from_arrays(encoded.indices, texts)


def _latest_labels(labels: pa.Table) -> pa.Table:
    """Return the last label of each key (`_name`)."""
    labels = labels.sort_by([(name, "ascending") for name in ("_name", *_ORDER)])
    names = labels.column("_name").to_numpy()
    if len(names):
        is_last = np.append(names[1:] != names[:-1], True)
    else:
        is_last = np.empty(0, bool)
    return labels.filter(pa.array(is_last))


def _unsigned(column: pa.ChunkedArray) -> Array:
    numbers: Array = column.cast(pa.int64()).to_numpy().astype(np.uint64)
    return numbers
