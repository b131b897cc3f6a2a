from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

import onnxserve
from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    InvalidRequest,
    NotInstalled,
    SchemaMismatch,
)
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_regressor
from tests.support.models import columns, graph_tensor, numbers_section, tensor_column, write_model
from tests.support.refusals import mentions, refused
from tests.support.tracking import DEFAULT_EXPERIMENT

ROWS = labelled(300)
REFERENCE = {name: labelled(80, seed=5)[name] for name in COLUMNS}


@pytest.fixture(scope="module")
def regressor(tmp_path_factory):
    """Return the folder of a model with the answer 2 a - b."""
    folder = tmp_path_factory.mktemp("models") / "model"
    return str(write_regressor(folder, reference=REFERENCE))


def test_contributions_of_a_sum_are_its_terms(regressor, tmp_path):
    explanation = onnxserve.explain(regressor, ROWS, max_rows=20, seed=3)
    assert explanation.columns == ("a", "b")
    assert explanation.values.shape == (20, 2, 1)
    wanted = 2 * (ROWS["a"][explanation.positions] - REFERENCE["a"].mean())
    assert explanation.values[:, 0, 0] == pytest.approx(wanted)
    first, second = explanation.importance
    assert (first.column, second.column, first.permutation) == ("a", "b", None)
    assert first.mean_abs == pytest.approx(np.abs(wanted).mean())
    assert mentions(explanation.background, "80 rows", "reference")
    explanation.write_contributions(str(tmp_path / "rows.csv"))
    table = pd.read_csv(tmp_path / "rows.csv")
    assert list(table) == ["_row", "_output", "_base_value", "a", "b"]
    assert table["_row"].tolist() == explanation.positions.tolist()
    sums = table["_base_value"] + table["a"] + table["b"]
    answers = (2 * ROWS["a"] - ROWS["b"])[explanation.positions]
    assert sums.tolist() == pytest.approx(answers.tolist())


def test_explanation_depends_on_the_seed_only(regressor):
    first, again, other = (
        onnxserve.explain(regressor, ROWS, "value", max_rows=5, seed=s) for s in (1, 1, 2)
    )
    assert first.importance == again.importance != other.importance
    assert first.values.tolist() == again.values.tolist()


def test_permutation_importance_is_exact(regressor):
    explanation = onnxserve.explain(regressor, pd.DataFrame(ROWS), "value", max_rows=2)
    table = pd.DataFrame({name: ROWS[name] for name in COLUMNS})
    model = LinearRegression(fit_intercept=False).fit(table, 2 * table["a"] - table["b"])
    theirs = permutation_importance(
        model,
        table,
        ROWS["value"],
        scoring="neg_root_mean_squared_error",
        n_repeats=20,
        random_state=0,
    )
    assert explanation.metric == "rmse"
    for entry, mean in zip(explanation.importance, theirs.importances_mean, strict=True):
        assert entry.permutation == pytest.approx(mean, rel=0.1)
    assert explanation.table()[0] == ("column", "mean |SHAP|", "rmse lost if permuted")


def test_data_are_the_default_background(tmp_path):
    folder = write_classifier(tmp_path / "model")
    explanation = onnxserve.explain(str(folder), ROWS, "label", metric="roc_auc", max_rows=30)
    assert mentions(explanation.background, "30 rows", "data")
    assert explanation.outputs == (0, 1)
    assert explanation.values[:, :, 0] == pytest.approx(-explanation.values[:, :, 1], abs=1e-6)
    assert explanation.importance[0].permutation == pytest.approx(0.4, abs=0.15)


def test_tensor_columns_are_numbered(tmp_path):
    graph = "g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {2.0, -1.0}> { y = MatMul(x, w) }"
    model = write_model(tmp_path / "m", graph, [tensor_column("float32", -1, 2)])
    rows = {"x": np.stack([ROWS["a"], ROWS["b"]], axis=1), "value": ROWS["value"]}
    explanation = onnxserve.explain(str(model), rows, "value", max_rows=3)
    assert [entry.column for entry in explanation.importance] == ["0", "1"]
    assert explanation.importance[0].permutation > explanation.importance[1].permutation > 0.1  # type: ignore[operator]


def test_run_has_pictures_and_contributions(regressor, tmp_path, new_tracking):
    run_id = new_tracking.create_run(DEFAULT_EXPERIMENT).info.run_id
    folder = write_classifier(tmp_path / "model", reference=REFERENCE)
    (folder / "MLmodel").write_text((folder / "MLmodel").read_text().replace("r-1", run_id))
    explanation = onnxserve.explain(str(folder), "reference", max_rows=6, log=True)
    assert explanation.run is not None
    names = {Path(file.path).name for file in new_tracking.list_artifacts(run_id, "explain")}
    assert names == {"explain.json", "contributions.parquet", "beeswarm.png", "bar.png"}
    local = mlflow.artifacts.download_artifacts(
        f"runs:/{run_id}/explain/contributions.parquet", dst_path=str(tmp_path)
    )
    assert pq.read_table(local).num_rows == 12  # both classes
    assert mlflow.artifacts.load_dict(f"runs:/{run_id}/explain/explain.json")["rows"] == 6


@pytest.mark.parametrize("max_rows", [1, 20])
def test_texts_and_missing_values_are_drawn(max_rows, tmp_path):
    graph = """g (string[N,1] t, double[N,1] x) => (double[N,1] y) {
        n = ai.onnx.ml.LabelEncoder <keys_strings = ["yes", "no"], values_floats = [1.0, 0.0]> (t)
        d = Cast <to = 11> (n)
        y = Add(d, x) }"""
    section = numbers_section(
        graph_tensor("t", "str", -1, 1, columns=["t"]),
        graph_tensor("x", "float64", -1, 1, columns=["x"]),
        dtype="float64",
    )
    model = write_model(tmp_path / "m", graph, columns(t="string", x="double"), section)
    rows = {"t": np.array(["yes", "no"] * 10, dtype=object), "x": np.arange(20.0)}
    explanation = onnxserve.explain(str(model), rows, max_rows=max_rows)
    assert explanation.values.shape == (max_rows, 2, 1)
    assert len(explanation.save(tmp_path / "out")) == 4


def test_nan_rows_are_left_out(regressor):
    rows = {name: values[:10].copy() for name, values in ROWS.items()}
    rows["a"][[2, 5]] = np.nan
    explanation = onnxserve.explain(regressor, rows)
    assert explanation.left_out == 2
    assert explanation.positions.tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert np.isfinite(explanation.values).all()
    assert np.isfinite(explanation.importance[0].mean_abs)
    rows["a"][:] = np.nan
    with refused(InvalidConfig, "80 rows"):
        onnxserve.explain(regressor, rows)
    with refused(InvalidConfig, "rmse", "nan"):
        onnxserve.explain(regressor, rows, "value")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"data": {"a": ROWS["a"]}}, SchemaMismatch, ("'b'",)),
        ({"metric": "rmse"}, InvalidConfig, ("metric", "target")),
        ({"max_evals": 3}, InvalidConfig, ("max_evals", "3", "2 columns", "5")),
        ({"target": "value", "metric": "accuracy"}, InvalidConfig, ("accuracy", "numbers")),
    ],
)
def test_invalid_option_is_refused(change, kind, words, regressor):
    with refused(kind, *words):
        onnxserve.explain(regressor, **{"data": ROWS, **change})


def test_unsupported_model_is_refused(tmp_path):
    mlflow.pyfunc.save_model(tmp_path / "pyfunc", loader_module="json", pip_requirements=[])
    with refused(InvalidArtifact, "no ONNX form"):
        onnxserve.explain(str(tmp_path / "pyfunc"), ROWS)
    graph = "g (float[N,2,2] x) => (float[N,2,2] y) { y = Identity(x) }"
    model = str(write_model(tmp_path / "m", graph, [tensor_column("float32", -1, 2, 2)]))
    pictures = np.ones((4, 2, 2))
    with refused(InvalidRequest, "'x'", "3 dimensions"):
        onnxserve.explain(model, {"x": pictures})
    with refused(InvalidConfig, "x, z"):
        onnxserve.explain(model, {"x": pictures, "z": np.ones(4)})


def test_missing_shap_is_named(regressor, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(NotInstalled, "shap", "mlflow-onnxserve[explain]"):
        onnxserve.explain(regressor, ROWS, log=True)
