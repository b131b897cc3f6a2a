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
    as_array,
    captured_outputs,
    conform,
    count_versions,
    describe_answers,
    hash_texts,
    unify_schemas,
    with_both_names,
)
from mlflow_deploy_plugin.serve.inference_log.windows import parse_window
from mlflow_deploy_plugin.serve.runtime.artifact import read_artifact
from tests.support.classifiers import write_classifier

DAY = datetime(2013, 7, 1, tzinfo=UTC)
WINDOW = parse_window("2013-07-01/1d")


@pytest.mark.parametrize(
    ("old", "new", "joined", "values"),
    [
        (pa.array([7.0], pa.float32()), pa.array([123456789]), pa.float64(), [7.0, 123456789.0]),
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
def test_types_are_unified(old, new, joined, values):
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
def test_rows_of_both_builds_are_read(log, upgraded, is_compacted):
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
    assert sorted(rows.table.column("id").to_pylist()) == ids


def texts(*values, kind=None):
    return pa.chunked_array([pa.array(values, kind or pa.string())])


def test_hash_is_new_only_once():
    seen = Deduplicator()
    rng = np.random.default_rng(0)
    earlier_hashes = set()
    for size in (5, 1, 400, 3, 90):
        hashes = rng.integers(0, 300, size).astype(np.uint64)
        first = seen.add(hashes)
        fresh = {int(value) for value in hashes} - earlier_hashes
        assert sorted(hashes[first].tolist()) == sorted(fresh)
        earlier_hashes |= fresh


def test_texts_have_distinct_hashes():
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


def test_small_sample_has_all_rows():
    table = pa.table({"_segment": ["s"] * 4, "_offset": [0, 0, 8, 8], "_row": [0, 1, 0, 0]})
    sample = Sample(10)
    sample.add(table)
    sample.add(table)
    assert (sample.rows(), sample.is_full, len(sample.table())) == (3, False, 3)


ROWS = pa.table(
    {
        "prediction": pa.array([0, 1, 1]),
        "output.probabilities": pa.array([[0.8, 0.2], [0.1, 0.9], [0.3, 0.7]]),
        "_model": ["m"] * 3,
        "_version": ["1", "2", "2"],
    }
)


def test_outputs_have_names_and_shapes(tmp_path):
    artifact = describe_answers(read_artifact(write_classifier(tmp_path / "model")), ROWS, ())
    outputs = captured_outputs(artifact, ROWS, ())
    assert outputs["label"].tolist() == [0, 1, 1]
    assert outputs["probabilities"].shape == (3, 2)
    assert list(captured_outputs(artifact, ROWS, ["output.probabilities"])) == ["label"]


def test_answers_are_described_by_their_types():
    artifact = describe_answers(None, ROWS, ())
    roles = {output.name: output.role for output in artifact.outputs}
    assert roles == {"prediction": "label", "probabilities": "values"}


def test_lists_of_one_length_are_arrays():
    array = as_array(pa.array([[[1.0, 2.0]], [[3.0, 4.0]]]))
    assert array is not None
    assert array.shape == (2, 1, 2)
    assert as_array(pa.array([[1.0], [1.0, 2.0]])) is None
    words = as_array(pa.array(["a", None, "a"]).dictionary_encode())
    assert words is not None
    assert words.tolist() == ["a", None, "a"]


def test_the_most_frequent_version_is_first():
    assert list(count_versions(ROWS).items()) == [(("m", "2"), 2), (("m", "1"), 1)]


def test_single_answer_has_two_names(tmp_path):
    artifact = read_artifact(write_classifier(tmp_path / "model"))
    assert with_both_names(["prediction", "a"], artifact) == {"prediction", "output.label", "a"}
    assert with_both_names(["a"], artifact) == {"a"}
