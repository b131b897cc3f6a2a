"""The identity of rows: (`_segment`, `_offset`, `_row`) tells the rows of a log apart, and its hash finds duplicates.

The same hash makes a sample that is the same each time.
"""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.columns import Array, concat_tables

IDENTITY = ("_segment", "_offset", "_row")


class Deduplicator:
    """Remembers the hashes that it was given, in 8 bytes each."""

    def __init__(self) -> None:
        self._sorted: list[Array] = []  # each more than twice as long as the next one: a look-up is log² n

    def first_seen(self, hashes: Array) -> Array:
        """Return [N] bool: True for a hash that was not given before."""
        distinct, first = np.unique(hashes, return_index=True)
        is_new = np.ones(len(distinct), dtype=bool)
        for known in self._sorted:
            is_new &= ~contains(known, distinct)
        mask = np.zeros(len(hashes), dtype=bool)
        mask[first[is_new]] = True
        if is_new.any():
            added = distinct[is_new]
            while self._sorted and len(self._sorted[-1]) < 2 * len(added):
                added = np.concatenate([self._sorted.pop(), added])
                added.sort(kind="stable")  # two sorted runs: timsort and radix sort merge them
            self._sorted.append(added)
        return mask


class Sample:
    """At most `bound` distinct rows: of more rows, those with the smallest hashes.

    Duplicates have equal hashes, so they are dropped whatever the order of the files is (bottom-k sampling: Cohen and
    Kaplan, PODC 2007).
    """

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._tables: list[pa.Table] = []
        self._hashes: list[Array] = []
        self._held = 0
        self.is_full = False

    def add(self, table: pa.Table) -> None:
        self._tables.append(table)
        self._hashes.append(hash_rows(table))
        self._held += len(table)
        if self._held > 2 * self._bound:
            self._compact()

    def rows(self) -> int:
        """Return the number of distinct rows that were added; beyond the bound an estimate, good to 1/sqrt(bound)."""
        self._compact()
        if not self.is_full:
            return self._held
        return round((self._bound - 1) / (float(self._hashes[0][-1]) / 2.0**64))

    def table(self) -> pa.Table:
        self._compact()
        return self._tables[0]

    def _compact(self) -> None:
        table = concat_tables(self._tables)
        hashes, first = np.unique(np.concatenate(self._hashes), return_index=True)
        if len(hashes) > self._bound:
            self.is_full = True
            hashes, first = hashes[: self._bound], first[: self._bound]
        self._tables, self._hashes, self._held = [table.take(pa.array(first))], [hashes], len(hashes)


def hash_rows(table: pa.Table) -> Array:
    """Return [N] uint64 of (segment, offset, row), evenly spread. Two rows of a log practically never share one."""
    hashes = hash_texts(table.column("_segment"))
    for name in ("_offset", "_row"):
        hashes = combine_hashes(hashes, table.column(name).to_numpy().astype(np.uint64))
    return hashes


def hash_texts(column: pa.ChunkedArray) -> Array:
    """Return [N] uint64 of texts, the same in every process. A null has a hash of its own."""
    texts = pc.fill_null(column.combine_chunks(), "\0").dictionary_encode()
    seeds = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.dictionary.to_pylist()]
    hashes: Array = np.frombuffer(b"".join(seeds), dtype=np.uint64)[np.asarray(texts.indices)]
    return hashes


def hash_ids(column: pa.ChunkedArray) -> Array:
    """Return [N] uint64 of texts, as `hash_texts` does, but 20 times as fast for texts of 32 bytes, such as our ids."""
    texts = pc.fill_null(column.combine_chunks().cast(pa.string()), "\0")
    is_id = np.asarray(pc.equal(pc.binary_length(texts), 32))
    hashes = np.empty(len(texts), np.uint64)
    if not is_id.all():
        hashes[~is_id] = hash_texts(pa.chunked_array([texts.filter(pa.array(~is_id))]))
    if is_id.any():
        _, offsets, content = (ids := texts.filter(pa.array(is_id))).buffers()
        start = np.frombuffer(offsets, np.int32)[ids.offset]
        words = np.frombuffer(content, np.uint64, 4 * len(ids), start).reshape(-1, 4)
        found = words[:, 0]
        for number in range(1, 4):
            found = combine_hashes(found, words[:, number])
        hashes[is_id] = found
    return hashes


def contains(ascending: Array, values: Array) -> Array:
    """Return [N] bool: True for a value that is in the ascending array, which is not empty."""
    positions = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    found: Array = ascending[positions] == values
    return found


def combine_hashes(hashes: Array, values: Array) -> Array:
    """Return [N] uint64 that depend on both, evenly spread."""
    return _splitmix64(hashes ^ _splitmix64(values))


def _splitmix64(values: Array) -> Array:
    """Do splitmix64's step: every bit of the result depends on every bit of the value. Arithmetic is modulo 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: Array = values ^ (values >> np.uint64(31))
    return scattered
