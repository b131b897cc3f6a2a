"""Labels are laid beside the rows that they tell of.

A row's labels are those of its prediction id and row, those of its prediction id alone, and those of its key. The last
one wins: by the time it was received, then by segment and offset (`labels.py`). What is held in memory does not grow
with the labels in the log: they are read past the rows, and those of other rows are let go.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.columns import Array, conform
from mlflow_deploy_plugin.inference_log.dedup import combine_hashes, hash_texts
from mlflow_deploy_plugin.inference_log.labels import LABELS, SCHEMA
from mlflow_deploy_plugin.inference_log.scan import FileVanished, prefetch, read_file
from mlflow_deploy_plugin.inference_log.storage import DAY, LogLocation, list_days, list_files
from mlflow_deploy_plugin.runtime import as_key

LABEL, LABEL_NUMBER = "_label", "_label_number"
_BY_ID, _BY_ROW = ("_prediction_id",), ("_prediction_id", "_row")
_ORDER = ("_received_time", "_segment", "_offset")
_SLACK = timedelta(days=1)
"""Two machines' clocks may differ: a label may seem to have come before its prediction, but not by more."""
MOST_HELD_LABELS = 500_000
"""Labels that are held before those that others have replaced are let go."""
_HELD_KINDS = 8
MOST_KEPT_BYTES = 64 * 2**20
"""Of all labels of an endpoint; where there are more they are read anew each time."""
_TEXT = r'"(?:[^"\\]|\\.)*"'
_KEY_PAIR = rf"({_TEXT}):(?:{_TEXT}|null)"
_TRUTH = (("true", "1"), ("false", "0"))


def labels_folder(location: LogLocation, endpoint: str) -> str:
    return f"{location.root}/{LABELS}/endpoint={endpoint}"


def read_labels(
    location: LogLocation, endpoint: str, unreadable: dict[str, str], since: datetime | None = None
) -> Iterator[pa.Table]:
    """The labels of an endpoint as tables of `labels.SCHEMA`; some may come twice.

    Args:
        since: those that name a prediction by its id, and came before, may be left out.
    """
    for day, folder in list_days(location, labels_folder(location, endpoint)):
        is_early = since is not None and day + DAY <= since
        done: set[str] = set()
        while files := [file for file in list_files(location, folder) if file.path not in done]:
            done.update(file.path for file in files)
            for file, content in prefetch(location, files):
                try:
                    for table in read_file(location, file.path, lambda names: None, unreadable, SCHEMA.names, content):
                        table = conform(table, SCHEMA)
                        yield table.filter(pc.is_valid(table.column("_key"))) if is_early else table
                except FileVanished:
                    continue
                except (pa.ArrowException, TypeError, ValueError) as error:
                    unreadable[file.path] = " ".join(str(error).split())


class EndpointLabels:
    """The labels of an endpoint, to be read again and again: few are kept in memory, many are read anew."""

    def __init__(self, location: LogLocation, endpoint: str, unreadable: dict[str, str]) -> None:
        self._read = partial(read_labels, location, endpoint, unreadable)
        self._kept: list[pa.Table] | None = None
        self._is_large = False

    def batches(self, since: datetime | None = None) -> Iterator[pa.Table]:
        """As `label_batches`."""
        if self._kept is None and not self._is_large:
            self._keep()
        yield from self._read(since) if self._kept is None else self._kept

    def key_columns(self) -> set[str]:
        """The columns by which labels name their rows."""
        return {column for labels in self.batches() for kind, _, _ in label_keys(labels) for column in kind}

    def _keep(self) -> None:
        kept, size = [], 0
        for labels in self._read():
            kept.append(labels)
            size += labels.nbytes
            if size > MOST_KEPT_BYTES:
                self._is_large = True
                return
        self._kept = kept


def join_labels(table: pa.Table, source: EndpointLabels) -> pa.Table:
    """The table with the columns `_label` (text) and `_label_number` (float64), null where no label is in.

    Args:
        table: rows of the log with `_prediction_id`, `_row`, `_received_time` and the columns of keys.
    """
    rows = RowKeys(table)
    held: list[pa.Table] = []
    for labels in source.batches(rows.earliest_label):
        found = rows.theirs(labels)
        if len(found):
            held.append(found)
        if sum(map(len, held)) > MOST_HELD_LABELS:
            held = [latest_labels(pa.concat_tables(held))]
    chosen = rows.choose(latest_labels(pa.concat_tables(held))) if held else None
    for name, kind in ((LABEL, pa.string()), (LABEL_NUMBER, pa.float64())):
        column = pa.nulls(len(table), kind) if chosen is None else chosen.column(name)
        table = table.append_column(name, column)
    return table


class RowKeys:
    """Rows that labels are looked for, by the hashes of all that a label may call them."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._names: dict[tuple[str, ...], Array | None] = {}
        self._distinct: dict[tuple[str, ...], Array] = {}
        self._matched: set[tuple[str, ...]] = set()

    @property
    def earliest_label(self) -> datetime | None:
        """No label that names one of these rows by its id has come before."""
        if not len(self._table) or "_received_time" not in self._table.column_names:
            return None
        first = pc.min(self._table.column("_received_time")).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).as_py()
        return None if first is None else datetime.fromtimestamp(first / 1e6, UTC) - _SLACK

    def theirs(self, labels: pa.Table) -> pa.Table:
        """Those of the labels that name one of these rows, with what they name it by in `_name`."""
        parts = []
        for kind, which, hashes in label_keys(labels):
            is_known = np.isin(hashes, self.of_kind(kind))
            if not is_known.any():
                if kind not in self._matched:
                    self.forget(kind)
            else:
                self._matched.add(kind)
                part = labels.take(pa.array(which[is_known])).select([*_ORDER, LABEL, LABEL_NUMBER])
                parts.append(part.append_column("_name", pa.array(hashes[is_known])))
        return pa.concat_tables(parts) if parts else labels.slice(0, 0)

    def choose(self, labels: pa.Table) -> pa.Table:
        """[N] the last label of each row, of those that `last_ones` left; null where there is none."""
        labels = labels.sort_by(
            [(name, "ascending") for name in (*_ORDER, "_name")]
        )  # the last one has the highest index
        names = labels.column("_name").to_numpy()
        by_name = np.argsort(names)
        best = np.full(len(self._table), -1, dtype=np.int64)
        for kind in self._distinct:
            if (hashes := self._names_of(kind)) is None:
                continue
            positions = np.minimum(np.searchsorted(names[by_name], hashes), len(names) - 1)
            found = by_name[positions]
            best = np.maximum(best, np.where(names[found] == hashes, found, -1))
        return labels.take(pa.array(best, mask=best < 0))

    def of_kind(self, kind: tuple[str, ...]) -> Array:
        """[M] uint64, ascending: what labels of this kind may call the rows."""
        if kind not in self._distinct:
            hashes = self._names_of(kind)
            self._distinct[kind] = np.empty(0, np.uint64) if hashes is None else np.unique(hashes)
        return self._distinct[kind]

    def forget(self, kind: tuple[str, ...]) -> None:
        """Lets go of what was worked out of this kind, where many are held: callers may name rows in thousands."""
        if len(self._distinct) > _HELD_KINDS and kind != _BY_ID:
            self._distinct.pop(kind, None)
            self._names.pop(kind, None)

    def _names_of(self, kind: tuple[str, ...]) -> Array | None:
        """[N] uint64: what labels of this kind call each row; None: they are of columns that the rows lack."""
        if kind not in self._names:
            self._names[kind] = self._hashed(kind)
        return self._names[kind]

    def _hashed(self, kind: tuple[str, ...]) -> Array | None:
        if not len(self._table) or not set(kind) <= set(self._table.column_names):
            return None
        if kind == _BY_ID:
            return hash_texts(self._table.column("_prediction_id"))
        if kind == _BY_ROW:
            ids = self._names_of(_BY_ID)
            return None if ids is None else combine_hashes(ids, _unsigned(self._table.column("_row")))
        if any(pa.types.is_nested(self._table.schema.field(name).type) for name in kind):
            return None  # a label's key holds single values
        return hash_texts(row_keys(self._table, kind))


def label_keys(labels: pa.Table) -> Iterator[tuple[tuple[str, ...], Array, Array]]:
    """What labels name their rows by: the kind of name, [M] which labels, [M] uint64 their names' hashes."""
    has_id = np.asarray(pc.is_valid(labels.column("_prediction_id")))
    has_row = np.asarray(pc.is_valid(labels.column("_row")))
    has_key = np.asarray(pc.is_valid(labels.column("_key"))) & ~has_id
    if (alone := np.flatnonzero(has_id & ~has_row)).size:
        yield _BY_ID, alone, hash_texts(labels.column("_prediction_id").take(pa.array(alone)))
    if (exact := np.flatnonzero(has_id & has_row)).size:
        part = labels.take(pa.array(exact))
        yield _BY_ROW, exact, combine_hashes(hash_texts(part.column("_prediction_id")), _unsigned(part.column("_row")))
    if has_key.any():
        keyed = np.flatnonzero(has_key)
        texts = _normalise_booleans(labels.column("_key").take(pa.array(keyed)))
        shapes = pc.replace_substring_regex(texts, _KEY_PAIR, r"\1").combine_chunks().dictionary_encode()
        hashes = hash_texts(texts)
        which = np.asarray(shapes.indices)
        for number in range(len(shapes.dictionary)):
            of_shape = np.flatnonzero(which == number)
            yield _key_columns(texts[int(of_shape[0])].as_py()), keyed[of_shape], hashes[of_shape]


def _normalise_booleans(keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """Keys that were written before booleans were 1 and 0 in them (`texts.as_key`)."""
    for said, meant in _TRUTH:  # a quotation mark within a name or a value stands behind a backslash
        if pc.any(pc.match_substring(keys, f':"{said}"', ignore_case=True)).as_py():
            keys = pc.replace_substring_regex(keys, f'(?i):"{said}"', f':"{meant}"')
    return keys


def _key_columns(key: str) -> tuple[str, ...]:
    """What a key names; a text that is no key names itself, which no row has."""
    try:
        values = json.loads(key)
    except ValueError:
        return (key,)
    return tuple(values) if isinstance(values, dict) else (key,)


def latest_labels(labels: pa.Table) -> pa.Table:
    """Of the labels that name a row in the same way (`_name`), the last one."""
    labels = labels.sort_by([("_name", "ascending"), *((name, "ascending") for name in _ORDER)])
    names = labels.column("_name").to_numpy()
    is_last = np.append(names[1:] != names[:-1], True) if len(names) else np.empty(0, bool)
    return labels.filter(pa.array(is_last))


def row_keys(table: pa.Table, columns: Sequence[str]) -> pa.ChunkedArray:
    """[N] the keys of the rows as `labels.canonical_key` writes them."""
    names = sorted(columns)
    parts: list[pa.Array | pa.ChunkedArray | str] = []
    for position, name in enumerate(names):
        start = ("{" if position == 0 else ",") + json.dumps(name, ensure_ascii=False) + ":"
        parts += [pa.scalar(start), _json_texts(table.column(name))]
    joined = pc.binary_join_element_wise(*parts, pa.scalar("}"), "")
    return joined if isinstance(joined, pa.ChunkedArray) else pa.chunked_array([joined])


def _json_texts(column: pa.ChunkedArray) -> pa.Array:
    """[N] each value as a JSON text, or null."""
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
