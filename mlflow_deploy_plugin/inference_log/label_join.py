"""Joining labels to the rows that they are of.

The labels of a row are those of its prediction id and row, those of its prediction id alone, and those of its key. The
last one wins: by the time it was received, then by segment and offset (`labels.py`). Memory does not grow with the
labels in the log: they are read past the rows, and labels of other rows are let go.

Rows and labels are matched by hashes of their join keys. The *kind* of a join key is the columns that it is made of.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.columns import Array
from mlflow_deploy_plugin.inference_log.dedup import combine_hashes, contains, hash_ids, hash_texts
from mlflow_deploy_plugin.inference_log.labels import LABEL, LABEL_NUMBER, EndpointLabels
from mlflow_deploy_plugin.runtime import as_key

Kind = tuple[str, ...]

_BY_ID, _BY_ROW = ("_prediction_id",), ("_prediction_id", "_row")
_ORDER = ("_received_time", "_segment", "_offset")
_CLOCK_SKEW = timedelta(days=1)
"""Two machines' clocks differ by less: a label may seem to be earlier than its prediction, but not by more."""
MOST_HELD_LABELS = 500_000
"""More labels are not held before those that later ones have replaced are let go."""
_HELD_KINDS = 8
_TEXT = r'"(?:[^"\\]|\\.)*"'
_KEY_PAIR = rf"({_TEXT}):(?:{_TEXT}|null)"
_BOOLEANS = (("true", "1"), ("false", "0"))


def join_labels(table: pa.Table, labels: EndpointLabels) -> pa.Table:
    """Return the table with the columns `_label` (text) and `_label_number` (float64), null for a row without a label.

    Args:
        table: rows of the log with `_prediction_id`, `_row`, `_received_time` and the columns of keys.
    """
    rows = RowKeys(table)
    held: list[pa.Table] = []
    for batch in labels.batches(rows.earliest_label):
        found = rows.matching_labels(batch)
        if len(found):
            held.append(found)
        if sum(map(len, held)) > MOST_HELD_LABELS:
            held = [_latest_labels(pa.concat_tables(held))]
    chosen = rows.choose_labels(_latest_labels(pa.concat_tables(held))) if held else None
    for name, kind in ((LABEL, pa.string()), (LABEL_NUMBER, pa.float64())):
        column = pa.nulls(len(table), kind) if chosen is None else chosen.column(name)
        table = table.append_column(name, column)
    return table


def key_columns(labels: EndpointLabels) -> set[str]:
    """Return the columns by which labels name their rows."""
    return {column for batch in labels.batches() for kind, _, _ in label_keys(batch) for column in kind}


class RowKeys:
    """The join keys of rows, hashed, for each kind of key that labels have."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._hashes: dict[Kind, Array | None] = {}
        self._distinct: dict[Kind, Array] = {}
        self._matched: set[Kind] = set()

    @property
    def earliest_label(self) -> datetime | None:
        """No label that names one of these rows by its id is older."""
        if not len(self._table) or "_received_time" not in self._table.column_names:
            return None
        first = pc.min(self._table.column("_received_time")).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py()
        return None if first is None else datetime.fromtimestamp(first / 1e6, UTC) - _CLOCK_SKEW

    def matching_labels(self, labels: pa.Table) -> pa.Table:
        """Return the labels that name one of these rows, with the hash of their key in `_name`."""
        parts = []
        for kind, which, hashes in label_keys(labels):
            known = self.distinct_hashes(kind)
            is_known = contains(known, hashes) if len(known) else np.zeros(len(hashes), bool)
            if not is_known.any():
                if kind not in self._matched:
                    self.forget(kind)
            else:
                self._matched.add(kind)
                part = labels.take(pa.array(which[is_known])).select([*_ORDER, LABEL, LABEL_NUMBER])
                parts.append(part.append_column("_name", pa.array(hashes[is_known])))
        return pa.concat_tables(parts) if parts else labels.slice(0, 0)

    def choose_labels(self, labels: pa.Table) -> pa.Table:
        """Return [N] the last label of each row, null for a row without one.

        Args:
            labels: what `_latest_labels` returned.
        """
        # the last one has the highest index
        labels = labels.sort_by([(name, "ascending") for name in (*_ORDER, "_name")])
        names = labels.column("_name").to_numpy()
        by_name = np.argsort(names)
        best = np.full(len(self._table), -1, dtype=np.int64)
        for kind in self._distinct:
            if (hashes := self._row_hashes(kind)) is None:
                continue
            positions = np.minimum(np.searchsorted(names[by_name], hashes), len(names) - 1)
            found = by_name[positions]
            best = np.maximum(best, np.where(names[found] == hashes, found, -1))
        return labels.take(pa.array(best, mask=best < 0))

    def distinct_hashes(self, kind: Kind) -> Array:
        """Return [M] uint64, ascending: the distinct keys of the rows."""
        if kind not in self._distinct:
            hashes = self._row_hashes(kind)
            self._distinct[kind] = np.empty(0, np.uint64) if hashes is None else np.unique(hashes)
        return self._distinct[kind]

    def forget(self, kind: Kind) -> None:
        """Let go of the hashes of a kind if many are held: callers may name rows in thousands of ways."""
        if len(self._distinct) > _HELD_KINDS and kind != _BY_ID:
            self._distinct.pop(kind, None)
            self._hashes.pop(kind, None)

    def _row_hashes(self, kind: Kind) -> Array | None:
        """Return [N] uint64: the key of each row, or None if a column of it is missing or holds no single values."""
        if kind in self._hashes:
            return self._hashes[kind]
        hashes: Array | None = None
        if len(self._table) and set(kind) <= set(self._table.column_names):
            if kind == _BY_ID:
                hashes = hash_ids(self._table.column("_prediction_id"))
            elif kind == _BY_ROW:
                ids = self._row_hashes(_BY_ID)
                hashes = None if ids is None else combine_hashes(ids, _unsigned(self._table.column("_row")))
            elif not any(pa.types.is_nested(self._table.schema.field(name).type) for name in kind):
                hashes = hash_texts(row_keys(self._table, kind))  # a label's key holds single values
        self._hashes[kind] = hashes
        return hashes


class LabelMatches:
    """The distinct join keys of labels, and which of them a row of the log has; 9 bytes each."""

    def __init__(self) -> None:
        self._parts: dict[Kind, list[Array]] = {}
        self._hashes: dict[Kind, Array] = {}
        self._found: dict[Kind, Array] = {}

    def add(self, labels: pa.Table) -> None:
        """Add the keys of labels, a table of `labels.SCHEMA`, before any row is matched."""
        for kind, _, hashes in label_keys(labels):
            self._parts.setdefault(kind, []).append(np.unique(hashes))

    def match(self, table: pa.Table) -> None:
        """Mark the keys that a row of the table has."""
        rows = RowKeys(table)
        for kind, hashes in self._all().items():
            if len(known := rows.distinct_hashes(kind)):
                self._found[kind] |= contains(known, hashes)
            rows.forget(kind)

    @property
    def columns(self) -> set[str]:
        """The columns of the log that the keys are made of."""
        return {column for kind in self._all() for column in kind}

    @property
    def count(self) -> int:
        return sum(map(len, self._all().values()))

    @property
    def matched(self) -> int:
        return sum(int(found.sum()) for found in self._found.values())

    def _all(self) -> dict[Kind, Array]:
        if not self._hashes:
            self._hashes = {kind: np.unique(np.concatenate(parts)) for kind, parts in self._parts.items()}
            self._found = {kind: np.zeros(len(hashes), dtype=bool) for kind, hashes in self._hashes.items()}
        return self._hashes


def label_keys(labels: pa.Table) -> Iterator[tuple[Kind, Array, Array]]:
    """Yield the kinds of keys that labels have, each with [M] the labels' indices and [M] uint64 their hashes."""
    has_id = np.asarray(pc.is_valid(labels.column("_prediction_id")))
    has_row = np.asarray(pc.is_valid(labels.column("_row")))
    has_key = np.asarray(pc.is_valid(labels.column("_key"))) & ~has_id
    if (alone := np.flatnonzero(has_id & ~has_row)).size:
        yield _BY_ID, alone, hash_ids(labels.column("_prediction_id").take(pa.array(alone)))
    if (exact := np.flatnonzero(has_id & has_row)).size:
        part = labels.take(pa.array(exact))
        yield _BY_ROW, exact, combine_hashes(hash_ids(part.column("_prediction_id")), _unsigned(part.column("_row")))
    if has_key.any():
        keyed = np.flatnonzero(has_key)
        texts = labels.column("_key").take(pa.array(keyed))
        for old, new in _BOOLEANS:  # keys that were written before booleans were 1 and 0 in them (`texts.as_key`)
            # a quotation mark within a name or a value stands behind a backslash
            if pc.any(pc.match_substring(texts, f':"{old}"', ignore_case=True)).as_py():
                texts = pc.replace_substring_regex(texts, f'(?i):"{old}"', f':"{new}"')
        shapes = pc.replace_substring_regex(texts, _KEY_PAIR, r"\1").combine_chunks().dictionary_encode()
        hashes = hash_texts(texts)
        which = np.asarray(shapes.indices)
        for number in range(len(shapes.dictionary)):
            of_shape = np.flatnonzero(which == number)
            key = texts[int(of_shape[0])].as_py()
            try:
                values = json.loads(key)
            except ValueError:
                values = None
            # a text that is no key is a kind of its own, which no row has
            yield tuple(values) if isinstance(values, dict) else (key,), keyed[of_shape], hashes[of_shape]


def row_keys(table: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    """Return [N] the keys of the rows as `labels.canonical_key` writes them."""
    parts: list[pa.Array | pa.ChunkedArray | str] = []
    for position, name in enumerate(sorted(columns)):
        start = ("{" if position == 0 else ",") + json.dumps(name, ensure_ascii=False) + ":"
        parts += [pa.scalar(start), _json_texts(table.column(name))]
    joined = pc.binary_join_element_wise(*parts, pa.scalar("}"), "")
    return joined if isinstance(joined, pa.ChunkedArray) else pa.chunked_array([joined])


def _latest_labels(labels: pa.Table) -> pa.Table:
    """Return the last one of the labels with the same key (`_name`)."""
    labels = labels.sort_by([("_name", "ascending"), *((name, "ascending") for name in _ORDER)])
    names = labels.column("_name").to_numpy()
    is_last = np.append(names[1:] != names[:-1], True) if len(names) else np.empty(0, bool)
    return labels.filter(pa.array(is_last))


def _json_texts(column: pa.ChunkedArray) -> pa.Array:
    """Return [N] each value as a JSON text, or null."""
    encoded = column.combine_chunks()
    if pa.types.is_float16(encoded.type):
        encoded = encoded.cast(pa.float32())
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    values = encoded.dictionary
    is_float = pa.types.is_floating(values.type)  # to_pylist would make 0.10000000149011612 of a float32's 0.1
    distinct = values.to_numpy(zero_copy_only=False) if is_float else values.to_pylist()
    texts = [json.dumps(as_key(value), ensure_ascii=False) for value in distinct]
    return pc.fill_null(pa.array(texts, pa.string()).take(encoded.indices), "null")


def _unsigned(column: pa.ChunkedArray) -> Array:
    numbers: Array = column.cast(pa.int64()).to_numpy().astype(np.uint64)
    return numbers
