"""Tests that feeds are joined, cut and repeated without changing values, and that sizes
and row axes are detected.
"""

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.serve.runtime.feeds import (
    concatenate_feeds,
    narrowed_feeds,
    no_batch_dimension_reason,
    repeat_row,
    row_count,
    sent_arrays,
    slice_feeds,
)
from mlflow_deploy_plugin.serve.runtime.model import OnnxModel
from tests.support.models import graph_tensor, tensor_column, write_model
from tests.support.refusals import refused


def narrowed(*values):
    exact = np.array(values)
    return narrowed_feeds({"x": exact.astype(np.float32)}, {"@double": exact})


def test_sent_arrays_are_joined_and_sliced():
    joined = concatenate_feeds([narrowed(0.1, 0.2), narrowed(0.3)])
    assert joined["x"].dtype == np.float32
    assert sent_arrays(joined)["@double"].tolist() == [0.1, 0.2, 0.3]
    part = slice_feeds(joined, slice(1, 3))
    assert len(part["x"]) == 2
    assert sent_arrays(part)["@double"].tolist() == [0.2, 0.3]


def test_exact_feeds_are_their_sent_arrays():
    plain = {"x": np.array([1.0, 2.0])}
    assert sent_arrays(plain) is plain
    assert type(concatenate_feeds([plain, narrowed(3.0)])) is dict
    assert type(slice_feeds(plain, slice(1))) is dict


def test_one_row_is_repeated():
    feeds = {"x": np.array([[1, 2], [3, 4]]), "s": np.array(["a", "b"], dtype=object)}
    assert {name: array.tolist() for name, array in repeat_row(feeds, 1, 2).items()} == {
        "x": [[3, 4], [3, 4]],
        "s": ["b", "b"],
    }
    assert np.shares_memory(repeat_row(feeds, 1)["x"], feeds["x"])


def test_longest_array_is_the_row_count():
    assert row_count({"x": np.zeros((3, 2)), "one": np.zeros(1), "scalar": np.array(1.0)}) == 3
    assert row_count({"scalar": np.array(1.0)}) == row_count({}) == 0


TEXTS = (
    "g (float[N,2] X, string[N] s) => (float[N] y, string[N] t) <int64[1] axis = {1}> { %s \n"
    " t = Identity(s) }"
)
COSINE = (
    "g (float[N,K] a, float[M,K] b) => (float[N,M] y) { c = Transpose<perm = [1, 0]>(b) \n"
    " y = MatMul(a, c) }"
)
ZIPMAP = (
    "g (float[N,2] p) => (seq(map(string, float)) probability)"
    '{ probability = ai.onnx.ml.ZipMap<classlabels_strings = ["no", "yes"]>(p) }'
)


def load(folder, graph):
    return OnnxModel.load(write_model(folder, graph))


@pytest.mark.parametrize(
    ("graph", "has_rows", "why"),
    [
        ("g (float[N,2] X) => (float[N,2] y) { y = Neg(X) }", True, ""),
        (TEXTS % "y = ReduceSum<keepdims=0>(X, axis)", True, ""),
        ("g (float[?,2] a, float[?,2] b) => (float[?,2] y) { y = Add(a, b) }", True, ""),
        # tf2onnx writes such names.
        (
            "g (float[unk__5,2] a, float[unk__6,2] b) => (float[unk__7,2] y) { y = Add(a, b) }",
            True,
            "",
        ),
        (ZIPMAP, True, ""),
        (
            "g (float[1,2] X) => (float[1,2] y) { y = Neg(X) }",
            True,
            "'X' has the fixed first size 1",
        ),
        (
            "g (float[3,2] X) => (float[3,2] y) { y = Neg(X) }",
            False,
            "'X' has the fixed first size 3",
        ),
        (
            "g (float[0,2] X) => (float[0,2] y) { y = Neg(X) }",
            False,
            "'X' has the fixed first size 0",
        ),
        ("g (float[N] a, float b) => (float[N] y) { y = Mul(a, b) }", False, "'b' is a scalar"),
        (COSINE, False, "not the same: 'a' (N), 'b' (M)"),
        (
            "g (float[N] X) => (float y) { y = ReduceSum<keepdims=0>(X) }",
            False,
            "none of its outputs",
        ),
        (
            "g () => (float[2] y) <float[2] c = {1, 2}> { y = Identity(c) }",
            False,
            "it has no inputs",
        ),
    ],
)
def test_equal_free_first_dimensions_are_rows(tmp_path, graph, has_rows, why):
    model = load(tmp_path, graph)

    assert model.schema.has_rows is has_rows
    assert model.schema.tensor_schema.has_rows is has_rows
    assert why in (reason := no_batch_dimension_reason(model.artifact))
    assert bool(reason) == bool(why)


SUM = "g (float[N,K] a, float[N,K] b) => (float[N,K] y) { y = Add(a, b) }"


def test_stock_graph_may_broadcast(tmp_path):
    model = load(tmp_path, SUM)
    a = np.ones((2, 3), np.float32)
    for b in (np.ones((1, 1), np.float32), [[1]]):
        feeds = model.schema.from_columns({"a": a, "b": b})
        assert model.run(feeds)["y"].tolist() == [[2.0] * 3] * 2
    with pytest.raises(InferenceError, match="Attempting to broadcast"):
        model.run(model.schema.from_columns({"a": a, "b": np.ones((2, 2), np.float32)}))


def test_dimensions_of_one_name_have_one_size(tmp_path):
    tensors = [tensor_column("float32", -1, -1, name=name) for name in "ab"]
    section = {
        "framework": "torch",
        "inputs": [graph_tensor(name, "float32", -1, -1, columns=[]) for name in "ab"],
        "outputs": [graph_tensor("y", "float32", -1, -1, role="value")],
        "prediction": ["y"],
    }
    model = OnnxModel.load(write_model(tmp_path, COSINE, tensors, section))
    a = np.ones((2, 3), np.float32)
    b = np.ones((4, 3), np.float32)

    assert model.run(model.schema.from_columns({"a": a, "b": b}))["y"].tolist() == [[3.0] * 4] * 2
    with refused(SchemaMismatch, "'K'", "'a' has 3", "'b' has 2"):
        model.schema.from_columns({"a": a, "b": b[:, :2]})
