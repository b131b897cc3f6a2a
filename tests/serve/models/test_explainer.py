"""Requests to the explainer process. tests/serve/inference/test_explain.py checks its
answers.
"""

import numpy as np
import pyarrow as pa
import pytest

from mlflow_deploy_plugin.core.errors import DeadlineExceeded, InvalidRequest
from mlflow_deploy_plugin.serve.models.explainer import answer
from tests.support.models import graph_tensor, numbers_section, tensor_column, write_model
from tests.support.page_models import with_example, with_reference

MISSING = """
missing (float[N,2] X) => (float[N,1] y) <float nine = {9.0}, int64[1] axis = {1}> {
  gone = IsNaN(X)
  filled = Where(gone, nine, X)
  y = ReduceSum(filled, axis)
}"""
SUM = "total (float[N,2] X) => (float[1,1] y) <int64[2] axes = {0, 1}> { y = ReduceSum(X, axes) }"
FIRST = "first (float[N,400] X) => (float[N,400] y) { y = Identity(X) }"
FEW = "few (float[N,400] X) => (float[N,1] y) <int64[1] axis = {1}> { y = ReduceSum(X, axis) }"


def model(folder, graph, width=2, rows=None):
    signature = [tensor_column("float32", -1, width)]
    section = numbers_section(graph_tensor("X", "float32", -1, width))
    return with_example(
        write_model(folder, graph, signature, section), {"inputs": rows or [[1.0] * width]}
    )


def explain(folder, row, seconds=60.0, max_evals=50):
    feeds = {"X": np.array([row], dtype=np.float32)}
    return answer(folder, feeds, max_evals, 0, seconds)


def test_missing_value_has_its_own_contribution(tmp_path):
    folder = model(tmp_path / "m", MISSING, rows=[[1.0, float("nan")]])
    explanation = explain(folder, [float("nan"), float("nan")])
    assert explanation.values.tolist() == [[[8.0], [0.0]]]
    assert explanation.base_values.tolist() == [10.0]


def test_nearly_equal_numbers_are_distinguished(tmp_path):
    """Numbers must be coded, because shap treats numbers as equal if their relative
    difference is below 1e-5.
    """
    folder = model(tmp_path / "m", MISSING, rows=[[1_000_000.0, 0.0]])
    explanation = explain(folder, [1_000_001.0, 0.0])
    assert explanation.values.tolist() == [[[1.0], [0.0]]]


def test_late_question_is_abandoned(tmp_path):
    folder = model(tmp_path / "m", MISSING)
    with pytest.raises(DeadlineExceeded, match=r"explained within -1.*50"):
        explain(folder, [1.0, 2.0], seconds=-1.0)


def test_wide_model_uses_fewer_rows(tmp_path):
    rows = np.random.default_rng(0).normal(size=(60, 400)).astype("float32").tolist()
    folder = model(tmp_path / "m", FEW, 400, rows)
    explanation = explain(folder, [0.0] * 400, max_evals=801)
    assert explanation.background == {"source": "input_example", "rows": 52}
    assert explanation.values.shape == (1, 400, 1)


@pytest.mark.parametrize(
    ("graph", "width", "said"),
    [
        (SUM, 2, "the model returns 1 rows for 2046 and cannot be explained"),
        (FIRST, 400, "the model returns 400 numbers per row; at most 100 can be explained"),
    ],
)
def test_unexplainable_outputs_are_refused(tmp_path, graph, width, said):
    folder = model(tmp_path / "m", graph, width, [[1.0] * width] * 3)
    with pytest.raises(InvalidRequest) as caught:
        explain(folder, [0.0] * width, max_evals=801)
    assert caught.value.message == said


def test_invalid_reference_is_refused(tmp_path, monkeypatch):
    folder = model(tmp_path / "m", MISSING)
    with_reference(folder, {"X": [[1.0], [2.0]]})
    with pytest.raises(InvalidRequest, match="example rows are invalid"):
        explain(folder, [1.0, 2.0])
    (folder / "reference.parquet").write_text("no Parquet")
    with pytest.raises(InvalidRequest, match="cannot be read"):
        explain(folder, [1.0, 2.0])
    with_reference(folder, {"X": [[1.0, 2.0], [3.0, 4.0]]})
    with monkeypatch.context() as patched:
        patched.setattr("mlflow_deploy_plugin.core.tabular.streams._MAX_VALUES", 3)
        with pytest.raises(InvalidRequest, match=r"4 values.* 3"):
            explain(folder, [1.0, 2.0])
    assert explain(folder, [1.0, 2.0]).background == {"source": "reference", "rows": 2}


def test_integers_in_float_columns_are_explained(tmp_path):
    graph = (
        "mixed (float[N,2] X) => (float[N,1] y) <int64[1] axis = {1}> { y = ReduceSum(X, axis) }"
    )
    signature = [{"name": "minute", "type": "long"}, {"name": "weekend", "type": "boolean"}]
    section = numbers_section(graph_tensor("X", "float32", -1, 2, columns=["minute", "weekend"]))
    folder = write_model(tmp_path / "m", graph, signature, section)
    values = {"minute": [10, 30], "weekend": [0, 1]}
    with_reference(
        folder, {name: pa.array(column, pa.float32()) for name, column in values.items()}
    )
    explanation = explain(folder, [21.0, 1.0])
    assert explanation.values.round(4).tolist() == [[[1.0], [0.5]]]
