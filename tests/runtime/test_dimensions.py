"""Which sizes of a graph have to agree, and whether its first dimensions are its rows."""

from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.errors import InferenceError, SchemaMismatch
from mlflow_deploy_plugin.runtime import OnnxModel, no_batch_dimension_reason
from tests.support.models import write_model

TEXTS = "g (float[N,2] X, string[N] s) => (float[N] y, string[N] t) <int64[1] axis = {1}> { %s \n t = Identity(s) }"
COSINE = "g (float[N,K] a, float[M,K] b) => (float[N,M] y) { c = Transpose<perm = [1, 0]>(b) \n y = MatMul(a, c) }"
ZIPMAP = (
    "g (float[N,2] p) => (seq(map(string, float)) probability)"
    '{ probability = ai.onnx.ml.ZipMap<classlabels_strings = ["no", "yes"]>(p) }'
)


def load(folder: Path, graph: str) -> OnnxModel:
    return OnnxModel.load(write_model(folder, graph))


@pytest.mark.parametrize(
    ("graph", "has_rows", "why"),
    [
        ("g (float[N,2] X) => (float[N,2] y) { y = Neg(X) }", True, ""),
        (TEXTS % "y = ReduceSum<keepdims=0>(X, axis)", True, ""),
        ("g (float[?,2] a, float[?,2] b) => (float[?,2] y) { y = Add(a, b) }", True, ""),
        (ZIPMAP, True, ""),
        ("g (float[1,2] X) => (float[1,2] y) { y = Neg(X) }", True, "'X' has the fixed first size 1"),
        ("g (float[3,2] X) => (float[3,2] y) { y = Neg(X) }", False, "'X' has the fixed first size 3"),
        ("g (float[0,2] X) => (float[0,2] y) { y = Neg(X) }", False, "'X' has the fixed first size 0"),
        ("g (float[N] a, float b) => (float[N] y) { y = Mul(a, b) }", False, "'b' is a scalar"),
        (COSINE, False, "not the same: 'a' (N), 'b' (M)"),
        ("g (float[N] X) => (float y) { y = ReduceSum<keepdims=0>(X) }", False, "none of its outputs"),
        ("g () => (float[2] y) <float[2] c = {1, 2}> { y = Identity(c) }", False, "it has no inputs"),
    ],
)
def test_the_first_dimensions_are_rows_where_they_are_free_and_the_same(
    tmp_path: Path, graph: str, has_rows: bool, why: str
) -> None:
    model = load(tmp_path, graph)

    assert model.schema.has_rows is has_rows
    assert model.schema.tensor_schema.has_rows is has_rows
    assert why in (found := no_batch_dimension_reason(model.artifact))
    assert bool(found) == bool(why)


def test_every_dimension_of_one_name_has_one_size_and_others_have_any(tmp_path: Path) -> None:
    model = load(tmp_path, COSINE)
    a, b = np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)

    assert model.run(model.schema.from_columns({"a": a, "b": b}))["y"].tolist() == [[3.0] * 4] * 2
    with pytest.raises(SchemaMismatch) as caught:
        model.schema.from_columns({"a": a, "b": b[:, :2]})
    assert caught.value.message == (
        "the model's dimension 'K' has one size, but 'a' has 3 (dimension 1) and 'b' has 2 (dimension 1)"
    )
    assert model.run(model.schema.from_columns({"a": a[:0], "b": b}))["y"].shape == (0, 4)


def test_a_signature_of_another_rank_than_the_graph_is_for_the_graph_to_refuse(tmp_path: Path) -> None:
    vectors = [
        {"type": "tensor", "name": name, "tensor-spec": {"dtype": "float32", "shape": [-1]}} for name in ("a", "b")
    ]
    model = OnnxModel.load(write_model(tmp_path, COSINE, vectors))
    feeds = model.schema.from_columns({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)})

    with pytest.raises(InferenceError, match="Invalid rank"):
        model.run(feeds)
