"""Which row is which: (`_segment`, `_offset`, `_row`) tells the rows of a log apart, and its hash finds doubles."""

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.inference_log.lists import Array

IDENTITY = ("_segment", "_offset", "_row")


class Seen:
    """Hashes that came by, in 8 bytes each."""

    def __init__(self) -> None:
        self._sorted: list[Array] = []  # each more than twice as long as the next one: a look is log² n

    def fresh(self, hashes: Array) -> Array:
        """[N] bool: which of them come by for the first time."""
        distinct, first = np.unique(hashes, return_index=True)
        is_new = np.ones(len(distinct), dtype=bool)
        for known in self._sorted:
            positions = np.minimum(np.searchsorted(known, distinct), len(known) - 1)
            is_new &= known[positions] != distinct
        mask = np.zeros(len(hashes), dtype=bool)
        mask[first[is_new]] = True
        if is_new.any():
            self._add(distinct[is_new])
        return mask

    def _add(self, hashes: Array) -> None:
        while self._sorted and len(self._sorted[-1]) < 2 * len(hashes):
            hashes = np.concatenate([self._sorted.pop(), hashes])
            hashes.sort(kind="stable")  # two sorted runs: timsort and radix sort merge them
        self._sorted.append(hashes)


def row_hashes(table: pa.Table) -> Array:
    """[N] uint64 of (segment, offset, row), evenly spread: two rows of a log share one by chance about never."""
    hashes = text_hashes(table.column("_segment"))
    for name in ("_offset", "_row"):
        hashes = mix(hashes, table.column(name).to_numpy().astype(np.uint64))
    return hashes


def text_hashes(column: pa.ChunkedArray) -> Array:
    """[N] uint64 of texts, the same in every process; a null is a text of its own."""
    texts = pc.fill_null(column.combine_chunks(), "\0").dictionary_encode()
    seeds = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts.dictionary.to_pylist()]
    hashes: Array = np.frombuffer(b"".join(seeds), dtype=np.uint64)[np.asarray(texts.indices)]
    return hashes


def mix(hashes: Array, values: Array) -> Array:
    """[N] uint64 that depend on both, evenly spread."""
    return _scatter(hashes ^ _scatter(values))


def _scatter(values: Array) -> Array:
    """splitmix64's step: every bit of the result depends on every bit of the value; arithmetic is modulo 2^64."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scattered: Array = values ^ (values >> np.uint64(31))
    return scattered
