import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig, NotInstalled
from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_regressor
from tests.support.models import columns, graph_tensor, write_model
from tests.support.refusals import mentions, refused
from tests.support.tracking import DEFAULT_EXPERIMENT

ROWS = labelled(400)


def values(points):
    return [point.value for point in points if point.value is not None]


def losses(points):
    """Return the largest loss of each disturbance."""
    largest = {}
    for point in points:
        largest[point.disturbance] = max(point.loss or 0.0, largest.get(point.disturbance, 0.0))
    return largest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("models") / "model")


def measured(model, target="label", data=ROWS, **options):
    return onnxserve.robustness(str(model), data, target, **options)


def test_metric_falls_with_the_strength(folder):
    strengths = {"noise": [0.1, 3.0], "swap": [], "scale": [10.0]}
    report = measured(folder, metric="roc_auc", strengths=strengths)
    curves = {name: values(points) for name, points in report.curves()}
    assert list(curves) == ["noise", "swap", "scale"]
    assert report.clean > 0.95
    assert curves["noise"][0] > 0.9 > curves["noise"][1]
    assert curves["swap"] == sorted(curves["swap"], reverse=True)
    (scaled,) = (point for point in report.points if point.disturbance == "scale")
    assert scaled.variant == "b"  # ten times b outweighs a, which has more influence on the label
    assert scaled.loss == pytest.approx(report.clean - values([scaled])[0])
    assert report.cannot == {}


def test_report_depends_on_the_seed_only(folder):
    def points(seed, **strengths):
        report = measured(folder, strengths=strengths, max_rows=200, seed=seed)
        return [point for point in report.points if point.disturbance == "spsa"]

    assert points(1, spsa=[0.3]) == points(1, noise=[0.1], spsa=[0.3]) != points(2, spsa=[0.3])


def test_estimated_gradients_are_worse_than_noise(folder):
    largest = losses(measured(folder, strengths={"noise": [0.3], "spsa": [0.3]}).points)
    assert largest["spsa"] > 3 * max(largest["noise"], 0.01)


def test_errors_of_numbers_lose_a_share(tmp_path):
    folder = write_regressor(tmp_path / "model")
    report = measured(folder, "value", pd.DataFrame(ROWS), strengths={"noise": [0.5]})
    (point,) = report.points
    assert report.metric == "rmse"
    assert values([point])[0] > report.clean
    assert 0.2 < losses([point])["noise"] < 1.0


def test_fitting_disturbances_are_the_default(folder):
    report = measured(folder)
    assert [name for name, _ in report.curves()] == ["noise", "missing", "swap", "scale"]
    assert mentions(report.cannot["typos"], "no text inputs")
    assert "no torch original" in report.cannot["pgd"]
    assert "spsa" not in report.cannot
    missing = [point for point in report.points if point.disturbance == "missing"]
    # One of two columns is missing, so there is no probability.
    assert missing[-1].no_number == pytest.approx(0.75, abs=0.1)


def test_only_accepted_missing_values_are_tried(tmp_path):
    folder = write_classifier(tmp_path / "model", types=("long", "double"))
    rows = {**ROWS, "a": np.round(ROWS["a"] * 10).astype(int)}
    report = measured(folder, data=rows, strengths={"missing": [0.5]})
    [note] = report.notes
    assert mentions(note, "missing", "a")
    assert report.points[0].no_number == pytest.approx(0.5, abs=0.05)


def test_refused_rows_have_no_value(tmp_path):
    folder = write_classifier(tmp_path / "model", types=("long", "long"))
    rows = {**ROWS, **{name: np.round(ROWS[name] * 10).astype(int) for name in COLUMNS}}
    report = measured(folder, data=rows, strengths={"missing": [0.5], "noise": [0.1]})
    point = report.points[1]
    assert point.value is None
    assert point.refusal.startswith("refused: ")
    assert ("missing", "0.5", "refused", "", "", "") in report.table()
    assert "robustness/missing" not in {name for name, _, _ in report.figures()}
    files = {file.name for file in report.save(tmp_path / "out")}
    assert files == {"missing.png", "noise.png", "robustness.json"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "gone"}, ("'gone'", "a, b, label, value")),
        ({"data": {name: array[:1] for name, array in ROWS.items()}}, ("one row",)),
        ({"data": {}}, ("none",)),
        ({"data": {"a": [1, 2], "label": [1]}}, ("a [2], label [1]",)),
        ({"data": 7}, ("data", "DataFrame")),
        ({"metric": "r2"}, ("'r2'", "accuracy")),
        ({"strengths": {"typos": []}}, ("typos", "no text inputs")),
        ({"log": True}, ("never logged",)),
    ],
)
def test_invalid_option_is_refused(change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = write_classifier(tmp_path / "other")
    unlogged = (model / "MLmodel").read_text().replace("r-1", "''").replace("m-1", "''")
    (model / "MLmodel").write_text(unlogged)
    with refused(InvalidConfig, *words):
        measured(model, **{"strengths": {"noise": [0.1]}, **change})


def test_text_model_is_measured(tmp_path):
    graph = """g (string[N] t) => (int64[N] label) {
        label = ai.onnx.ml.LabelEncoder <keys_strings = ["yes", "no"], \
values_int64s = [1, 0]> (t) }"""
    section = {
        "inputs": [graph_tensor("t", "str", -1, columns=["t"])],
        "outputs": [graph_tensor("label", "int64", -1, role="label")],
        "prediction": ["label"],
    }
    model = write_model(tmp_path / "m", graph, columns(t="string"), section)
    rows = {"t": np.array(["yes", "no"] * 100, dtype=object), "y": np.array([1, 0] * 100)}
    report = measured(model, "y", rows)
    assert {name for name, _ in report.curves()} == {"missing", "swap", "unseen", "typos"}
    assert mentions(report.cannot["noise"], "no numeric inputs")
    with refused(InvalidConfig, "noise", "no numeric inputs"):
        measured(model, "y", rows, strengths={"noise": []})


def test_run_has_metrics_and_pictures(folder, tmp_path, new_tracking):
    run_id = new_tracking.create_run(DEFAULT_EXPERIMENT).info.run_id
    model = write_classifier(tmp_path / "model")
    (model / "MLmodel").write_text((model / "MLmodel").read_text().replace("r-1", run_id))
    report = measured(model, strengths={"noise": [0.1, 0.5], "swap": [0.2]}, log=True)
    assert isinstance(report.run, LoggedRun)
    history = new_tracking.get_metric_history(run_id, "robustness/noise")
    assert {entry.step: entry.value for entry in history} == {
        100: report.points[0].value,
        500: report.points[1].value,
    }
    metrics = new_tracking.get_run(run_id).data.metrics
    assert metrics["robustness/clean"] == report.clean
    assert metrics["robustness/noise_loss"] == losses(report.points)["noise"]
    names = {entry.path for entry in new_tracking.list_artifacts(run_id, "robustness")}
    assert names == {"robustness/robustness.json", "robustness/noise.png", "robustness/swap.png"}
    document = mlflow.artifacts.load_dict(f"runs:/{run_id}/robustness/robustness.json")
    assert document["metric"] == "accuracy"


@pytest.mark.long
def test_evaluations_share_one_run(tmp_path, new_tracking):
    table = pd.DataFrame({name: ROWS[name] for name in COLUMNS})
    model = LogisticRegression().fit(table, ROWS["label"])
    info = onnxserve.log_model(
        model, name="model", input_example=table, registered_model_name="alone", explain=True
    )
    assert not info.run_id
    report = measured("models:/alone/1", strengths={"noise": 0.1}, log=True)
    (run,) = new_tracking.search_runs([DEFAULT_EXPERIMENT])
    assert report.run is not None
    assert report.run.run_id == run.info.run_id
    assert run.info.status == "FINISHED"
    files = {file.path for file in new_tracking.list_artifacts(run.info.run_id)}
    assert files == {"explain", "robustness"}
    metrics = new_tracking.get_logged_model(info.model_id).metrics
    assert "robustness/noise" in {metric.key for metric in metrics or []}


def test_wide_rows_are_fewer(folder, monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.wrap.evaluation.curves._MAX_VALUES", 100)
    assert measured(folder, strengths={"noise": 0.1}).rows == 50


def test_pictures_need_matplotlib(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with refused(NotInstalled, "matplotlib", "mlflow-onnxserve[monitoring]"):
        measured(folder, log=True)
