"""Files from before and after the log had the signature's types can be joined in one
table.
"""

from datetime import UTC, datetime, timedelta
from itertools import chain

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.serve.inference_log.log_reader import View
from mlflow_deploy_plugin.serve.inference_log.maintenance import compact
from mlflow_deploy_plugin.serve.inference_log.query import Query, run_query
from mlflow_deploy_plugin.serve.inference_log.tables import (
    Deduplicator,
    Sample,
    conform,
    hash_texts,
    unify_schemas,
)
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")


@pytest.mark.parametrize(
    ("old", "new", "joined", "values"),
    [
        (pa.array([7.0], pa.float32()), pa.array([123456789]), pa.float64(), [7.0, 123456789.0]),
        (pa.array([0.5], pa.float32()), pa.array([0.1]), pa.float64(), [0.5, 0.1]),
        (pa.array([1.0], pa.float32()), pa.array([True]), pa.float32(), [1.0, 1.0]),
        (pa.array([1], pa.int64()), pa.array([False]), pa.int64(), [1, 0]),
        (pa.array([7], pa.int32()), pa.array([2**62 + 1]), pa.int64(), [7, 2**62 + 1]),
        (
            pa.array([[1.0]], pa.list_(pa.float32())),
            pa.array([[True]]),
            pa.list_(pa.float32()),
            [[1.0], [1.0]],
        ),
        (pa.array([1.0], pa.float32()), pa.array(["a"]), pa.string(), ["1", "a"]),
    ],
)
def test_two_types_become_the_one_that_holds_both(old, new, joined, values):
    sides = [pa.table({"c": array}) for array in (old, new)]
    for tables in (sides, sides[::-1]):
        schema = unify_schemas(table.schema for table in tables)
        assert schema.field("c").type == joined
    table = pa.concat_tables([conform(table, schema) for table in sides])
    assert table.column("c").to_pylist() == values


@pytest.fixture
def upgraded(writer):
    """Rows of the earlier build in the graph's types, and of this build in the
    request's types.
    """
    for number in range(2):
        old = {
            "id": pa.array([123456789.0], pa.float32()),
            "is_late": pa.array([1.0], pa.float32()),
        }
        new = {"id": pa.array([123456789]), "is_late": pa.array([True])}
        for place, columns in enumerate((old, new)):
            writer.write({"_event_time": [DAY + timedelta(seconds=2 * number + place)], **columns})
    return writer


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_query_and_a_window_read_rows_of_both_builds(log, upgraded, is_compacted):
    if is_compacted:
        assert compact(log, "flights", datetime.now(UTC) + timedelta(hours=1)).written_files == 2
    query = Query(
        View("flights"), select="id::BIGINT AS id, is_late::BOOLEAN AS is_late", order_by="id"
    )
    with run_query(log, query) as answer:
        answer_rows = list(chain.from_iterable(batch.to_pylist() for batch in answer.batches))
    ids = [123456789] * 2 + [123456792] * 2
    assert answer_rows == [{"id": id_, "is_late": True} for id_ in ids]
    rows = log.read("flights", WINDOW)
    assert rows is not None
    assert sorted(rows.table.column("id").to_pylist()) == ids


def texts(*values, kind=None):
    return pa.chunked_array([pa.array(values, kind or pa.string())])


def test_a_hash_is_seen_for_the_first_time_once():
    seen = Deduplicator()
    rng = np.random.default_rng(0)
    earlier_hashes: set[int] = set()
    for size in (5, 1, 400, 3, 90):
        hashes = rng.integers(0, 300, size).astype(np.uint64)
        first = seen.add(hashes)
        fresh = {int(value) for value in hashes} - earlier_hashes
        assert sorted(hashes[first].tolist()) == sorted(fresh)
        earlier_hashes |= fresh


def test_texts_of_every_length_and_a_null_have_hashes_of_their_own():
    few = [
        "",
        "a",
        "a\0",
        None,
        "b" * 7,
        "b" * 7 + "\0",
        "b" * 8,
        "b" * 8 + "\1",
        *("c" * size for size in range(250, 260)),
    ]
    hashes = hash_texts(texts(*few))
    assert len(set(hashes.tolist())) == len(few)
    assert hash_texts(texts("d", *few).slice(1)).tolist() == hashes.tolist()


def test_a_sample_of_few_rows_is_all_of_them_once():
    table = pa.table({"_segment": ["s"] * 4, "_offset": [0, 0, 8, 8], "_row": [0, 1, 0, 0]})
    sample = Sample(10)
    sample.add(table)
    sample.add(table)
    assert (sample.rows(), sample.is_full, len(sample.table())) == (3, False, 3)
