"""Rows are joined only where a row's answer does not depend on its neighbours."""

from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.runtime import OnnxModel, repeat_row, unbatchable_reason
from tests.support.models import write_model

PER_ROW = """
per_row (float[N,2] X, string[N,1] s) => (float[N,1] y, string[N,1] t) <int64[1] axis = {1}> {
  y = ReduceSum(X, axis)
  t = Identity(s)
}"""
FIXED = "fixed (float[2,2] X) => (float[2,2] y) { y = Identity(X) }"
TOTAL = "total (float[N,2] X) => (float[1,2] y) <int64[1] axis = {0}> { y = ReduceSum(X, axis) }"
CENTRED = """
centred (float[N,2] X) => (float[N,2] y) <int64[1] axis = {0}> {
  mean = ReduceMean(X, axis)
  y = Sub(X, mean)
}"""
ONE_ROW = "one_row (float[N,2] X) => (float[N,2] y) <int64[2] shape = {1, 2}> { y = Reshape(X, shape) }"

DOUBLED = "doubled (float[N,2] X) => (float[M,2] y) { y = Concat<axis = 0>(X, X) }"
BATCH_OF_ONE = "batch_of_one (float[1,2] X) => (float[1,2] y) { y = Identity(X) }"
TWO_SIZES = "two_sizes (float[N,2] a, float[M,2] b) => (float[K,2] y) { y = Concat<axis = 0>(a, b) }"
SCALAR = "scalar (float a, float[N] b) => (float[N] y) { y = Mul(a, b) }"


def load(folder: Path, graph: str) -> OnnxModel:
    return OnnxModel.load(write_model(folder / "model", graph))


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (PER_ROW, ""),
        (FIXED, "it has no batch dimension: its input 'X' has the fixed first size 2"),
        (TOTAL, "it has no batch dimension: none of its outputs has a free first dimension"),
        (CENTRED, "its output 'y' depends on the rows beside it"),
        (ONE_ROW, "it has no batch dimension: none of its outputs"),
        (DOUBLED, "its output 'y' does not have one entry a row"),
        (BATCH_OF_ONE, "it has no batch dimension: its input 'X' has the fixed first size 1"),
        (TWO_SIZES, "it has no batch dimension: the first dimensions of its inputs are not the same: 'a' (N), 'b' (M)"),
        (SCALAR, "it has no batch dimension: its input 'a' is a scalar"),
    ],
    ids=["per_row", "fixed", "total", "centred", "one_row", "doubled", "batch_of_one", "two_sizes", "scalar"],
)
def test_a_graph_says_why_its_rows_cannot_be_joined(tmp_path: Path, graph: str, reason: str) -> None:
    model = load(tmp_path, graph)

    found = unbatchable_reason(model, model.example_feeds())

    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_row_is_repeated_in_every_input() -> None:
    feeds = {"x": np.array([[1.0, 2.0], [3.0, 4.0]]), "s": np.array([["a"], ["b"]], dtype=object)}

    assert repeat_row(feeds, 1)["x"].tolist() == [[3.0, 4.0]]
    assert repeat_row(feeds, 1, 3)["s"].tolist() == [["b"]] * 3
