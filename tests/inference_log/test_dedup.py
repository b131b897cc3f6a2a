"""Hashes of rows and texts, and the rows that are seen again."""

import uuid

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.inference_log.dedup import Deduplicator, Sample, contains, hash_ids, hash_texts


def texts(*values: str | None, kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind or pa.string())])


def test_a_hash_is_seen_for_the_first_time_once() -> None:
    seen, rng = Deduplicator(), np.random.default_rng(0)
    given: set[int] = set()
    for size in (5, 1, 400, 3, 90):
        hashes = rng.integers(0, 300, size).astype(np.uint64)
        first = seen.first_seen(hashes)
        fresh = {int(value) for value in hashes} - given
        assert sorted(hashes[first].tolist()) == sorted(fresh)
        given |= fresh


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_an_id_has_one_hash_wherever_it_stands(kind: pa.DataType) -> None:
    ids = [uuid.UUID(int=number).hex for number in range(50)]
    alone = hash_ids(texts(*ids, kind=kind))
    mixed = hash_ids(texts("a", *ids, None, "é" * 16, kind=kind).slice(1))
    assert mixed[:50].tolist() == alone.tolist()
    assert len(set(mixed.tolist())) == 52


def test_other_texts_have_the_hash_of_texts_and_a_null_one_of_its_own() -> None:
    few = texts("a", "", None, "a")
    assert hash_ids(few).tolist() == hash_texts(few).tolist()
    assert len(set(hash_texts(few).tolist())) == 3


def test_contains() -> None:
    assert contains(np.array([2, 5]), np.array([1, 2, 5, 9])).tolist() == [False, True, True, False]


def test_a_sample_of_few_rows_is_all_of_them_once() -> None:
    table = pa.table({"_segment": ["s"] * 4, "_offset": [0, 0, 8, 8], "_row": [0, 1, 0, 0]})
    sample = Sample(10)
    sample.add(table)
    sample.add(table)
    assert (sample.rows(), sample.is_full, len(sample.table())) == (3, False, 3)
