import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_regressor
from tests.support.models import graph_tensor, tensor_column, write_model
from tests.support.refusals import mentions
from tests.support.tracking import DEFAULT_EXPERIMENT

ROWS = labelled(400)


def values(points):
    return [point.value for point in points if point.value is not None]


def losses(points):
    """Return the largest loss of each disturbance."""
    largest: dict[str, float] = {}
    for point in points:
        largest[point.disturbance] = max(point.loss or 0.0, largest.get(point.disturbance, 0.0))
    return largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("models") / "model")


def test_the_metric_falls_with_the_strength(folder):
    strengths = {"noise": [0.1, 3.0], "swap": [], "scale": [10.0]}
    report = onnxserve.robustness(str(folder), ROWS, "label", metric="roc_auc", strengths=strengths)
    curves = {name: values(points) for name, points in report.curves()}
    assert list(curves) == ["noise", "swap", "scale"]
    assert report.clean > 0.95
    assert curves["noise"][0] > 0.9 > curves["noise"][1]
    assert curves["swap"] == sorted(curves["swap"], reverse=True)
    (scaled,) = (point for point in report.points if point.disturbance == "scale")
    assert scaled.variant == "b"  # ten times b outweighs a, which has more influence on the label
    assert scaled.loss == pytest.approx(report.clean - values([scaled])[0])
    assert report.cannot == {}


def test_the_same_seed_gives_the_same_report_whatever_else_is_measured(folder):
    def measured(seed, **strengths):
        report = onnxserve.robustness(
            str(folder), ROWS, "label", strengths=strengths, max_rows=200, seed=seed
        )
        return [point for point in report.points if point.disturbance == "spsa"]

    assert (
        measured(1, spsa=[0.3]) == measured(1, noise=[0.1], spsa=[0.3]) != measured(2, spsa=[0.3])
    )


def test_estimated_gradients_find_worse_rows_than_noise_of_the_same_size(folder):
    report = onnxserve.robustness(
        str(folder), ROWS, "label", strengths={"noise": [0.3], "spsa": [0.3]}
    )
    largest = losses(report.points)
    assert largest["spsa"] > 3 * max(largest["noise"], 0.01)


def test_errors_of_numbers_lose_a_share(tmp_path):
    folder = write_regressor(tmp_path / "model")
    report = onnxserve.robustness(
        str(folder), pd.DataFrame(ROWS), "value", strengths={"noise": [0.5]}
    )
    (point,) = report.points
    assert report.metric == "rmse"
    assert values([point])[0] > report.clean
    assert 0.2 < losses([point])["noise"] < 1.0


def test_by_default_all_is_measured_that_fits_and_the_rest_says_why(folder):
    report = onnxserve.robustness(str(folder), ROWS, "label")
    assert [name for name, _ in report.curves()] == ["noise", "missing", "swap", "scale"]
    assert mentions(report.cannot["typos"], "no text inputs")
    assert "no torch original" in report.cannot["pgd"]
    assert "spsa" not in report.cannot
    missing = [point for point in report.points if point.disturbance == "missing"]
    # One of two columns is missing, so there is no probability.
    assert missing[-1].no_number == pytest.approx(0.75, abs=0.1)


def test_values_are_taken_away_only_where_the_model_takes_missing_ones(tmp_path):
    folder = write_classifier(tmp_path / "model", types=("long", "double"))
    rows = {**ROWS, "a": np.round(ROWS["a"] * 10).astype(int)}
    report = onnxserve.robustness(str(folder), rows, "label", strengths={"missing": [0.5]})
    assert report.notes == (
        "missing: no values of a are removed, because the model rejects such rows",
    )
    assert report.points[0].no_number == pytest.approx(0.5, abs=0.05)


def test_refused_rows_are_a_point_without_a_value(tmp_path):
    folder = write_classifier(tmp_path / "model", types=("long", "long"))
    rows = {**ROWS, **{name: np.round(ROWS[name] * 10).astype(int) for name in COLUMNS}}
    report = onnxserve.robustness(
        str(folder), rows, "label", strengths={"missing": [0.5], "noise": [0.1]}
    )
    refused = report.points[1]
    assert refused.value is None
    assert refused.refusal.startswith("refused: ")
    assert ("missing", "0.5", "refused", "", "", "") in report.table()
    assert "robustness/missing" not in {name for name, _, _ in report.figures()}
    assert {file.name for file in report.save(tmp_path / "out")} == {
        "missing.png",
        "noise.png",
        "robustness.json",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "gone"}, r"the data has no column 'gone'; it has a, b, label, value"),
        ({"data": {**ROWS, "label": [None] * 400}}, "the data has no row with a known 'label'"),
        (
            {"data": {name: values[:1] for name, values in ROWS.items()}},
            "the data has one row with a known target",
        ),
        ({"data": {}}, "the data needs non-empty arrays of equal length; its arrays are none"),
        ({"data": {"a": [1, 2], "label": [1]}}, r"its arrays are a \[2\], label \[1\]"),
        ({"data": 7}, "data: a file, a DataFrame or a mapping of arrays is expected"),
        ({"data": "gone.csv"}, r"the dataset gone\.csv does not exist"),
        ({"metric": "r2"}, "there is no metric 'r2'; the metrics are accuracy"),
        ({"metric": "rmse", "target": "text"}, "rmse needs numbers"),
        (
            {"strengths": {"typos": []}},
            "no disturbance can be measured: typos: the model has no text inputs",
        ),
        (
            {"log": True, "model_uri": "other"},
            "was never logged to MLflow, so it has no run to log to",
        ),
    ],
)
def test_an_invalid_option_is_refused_in_one_line(change, message, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = write_classifier(tmp_path / "other")
    (other / "MLmodel").write_text(
        (other / "MLmodel").read_text().replace("r-1", "''").replace("m-1", "''")
    )
    rows = (
        {**ROWS, "text": np.array(["x"] * 400, dtype=object)}
        if "text" in message or "rmse" in message
        else ROWS
    )
    arguments = {
        "model_uri": str(folder),
        "data": rows,
        "target": "label",
        "strengths": {"noise": [0.1]},
        **change,
    }
    with pytest.raises(InvalidConfig, match=message):
        onnxserve.robustness(
            arguments.pop("model_uri"), arguments.pop("data"), arguments.pop("target"), **arguments
        )


def test_a_model_without_numbers_is_measured_by_its_texts(tmp_path):
    graph = """g (string[N] t) => (int64[N] label) {
        label = ai.onnx.ml.LabelEncoder <keys_strings = ["yes", "no"], \
values_int64s = [1, 0]> (t) }"""
    section = {
        "inputs": [graph_tensor("t", "str", -1, columns=["t"])],
        "outputs": [graph_tensor("label", "int64", -1, role="label")],
        "prediction": ["label"],
    }
    model = write_model(
        tmp_path / "m", graph, [{"name": "t", "type": "string", "required": True}], section
    )
    rows = {"t": np.array(["yes", "no"] * 100, dtype=object), "y": np.array([1, 0] * 100)}
    report = onnxserve.robustness(str(model), rows, "y")
    assert {name for name, _ in report.curves()} == {"missing", "swap", "unseen", "typos"}
    assert mentions(report.cannot["noise"], "no numeric inputs")
    with pytest.raises(InvalidConfig, match=r"noise: .*no numeric inputs"):
        onnxserve.robustness(str(model), rows, "y", strengths={"noise": []})


def test_the_run_of_the_version_gets_metrics_by_strength_and_pictures(
    folder, tmp_path, new_tracking
):
    run = new_tracking.create_run(DEFAULT_EXPERIMENT)
    model = write_classifier(tmp_path / "model")
    (model / "MLmodel").write_text((model / "MLmodel").read_text().replace("r-1", run.info.run_id))
    strengths = {"noise": [0.1, 0.5], "swap": [0.2]}
    report = onnxserve.robustness(str(model), ROWS, "label", strengths=strengths, log=True)
    assert isinstance(report.run, LoggedRun)
    history = new_tracking.get_metric_history(run.info.run_id, "robustness/noise")
    assert {entry.step: entry.value for entry in history} == {
        100: report.points[0].value,
        500: report.points[1].value,
    }
    metrics = new_tracking.get_run(run.info.run_id).data.metrics
    assert metrics["robustness/clean"] == report.clean
    assert metrics["robustness/noise_loss"] == losses(report.points)["noise"]
    names = {entry.path for entry in new_tracking.list_artifacts(run.info.run_id, "robustness")}
    assert names == {"robustness/robustness.json", "robustness/noise.png", "robustness/swap.png"}
    assert (
        mlflow.artifacts.load_dict(f"runs:/{run.info.run_id}/robustness/robustness.json")["metric"]
        == "accuracy"
    )


@pytest.mark.long
def test_a_model_that_no_run_logged_gets_one_run_for_its_evaluations(tmp_path, new_tracking):
    table = pd.DataFrame({name: ROWS[name] for name in COLUMNS})
    model = LogisticRegression().fit(table, ROWS["label"])
    info = onnxserve.log_model(
        model, name="model", input_example=table, registered_model_name="alone", explain=True
    )
    assert not info.run_id
    report = onnxserve.robustness(
        "models:/alone/1", ROWS, "label", strengths={"noise": 0.1}, log=True
    )
    (run,) = new_tracking.search_runs([DEFAULT_EXPERIMENT])
    assert report.run is not None
    assert report.run.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    assert {file.path for file in new_tracking.list_artifacts(run.info.run_id)} == {
        "explain",
        "robustness",
    }
    metrics = new_tracking.get_logged_model(info.model_id).metrics
    assert "robustness/noise" in {metric.key for metric in metrics or []}


def test_wide_rows_are_fewer(folder, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.evaluation.curves._MAX_VALUES", 100)
    assert onnxserve.robustness(str(folder), ROWS, "label", strengths={"noise": 0.1}).rows == 50


def test_pictures_need_matplotlib(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotInstalled, match=r"matplotlib: .*'mlflow-onnxserve\[monitoring\]'"):
        onnxserve.robustness(str(folder), ROWS, "label", log=True)


def test_columns_of_a_file_become_the_only_tensor_of_a_model(tmp_path):
    graph = "g (float[N,2] x) => (float[N,1] y) <float[2,1] w = {2.0, -1.0}> { y = MatMul(x, w) }"
    model = write_model(tmp_path / "m", graph, [tensor_column("float32", -1, 2)])
    rows = {name: ROWS[name] for name in (*COLUMNS, "value")}
    pd.DataFrame(rows).to_csv(tmp_path / "rows.csv", index=False)
    report = onnxserve.robustness(
        str(model), tmp_path / "rows.csv", "value", strengths={"scale": [10.0]}
    )
    assert report.clean < 0.6
    assert report.points[0].variant == "[0]"
