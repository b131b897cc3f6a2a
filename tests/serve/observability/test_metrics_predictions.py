"""Every response is counted, and so are its labels if the model predicts labels."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlflow_deploy_plugin.serve.observability.metrics import Metrics, Statistics, predicted_labels
from mlflow_deploy_plugin.serve.runtime.artifact import Artifact, Output
from tests.support import servers

LABEL = Output("label", "int64", (-1,), "label")
PROBABILITIES = Output("p", "float32", (-1, 2), "probabilities")
VALUES = Output("y", "float32", (-1, 1), "values")
PROBABLE = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32)


def artifact(*outputs, classes=()):
    return Artifact(Path(), Path(), "onnxserve", "3", "", "", outputs=outputs, classes=classes)


@pytest.mark.parametrize(
    ("model", "outputs", "labels"),
    [
        (artifact(LABEL), {"label": np.array([7])}, {7: 1}),
        (artifact(LABEL), {"label": np.array([7, 2, 7, 7])}, {7: 3, 2: 1}),
        (artifact(LABEL), {"label": np.array([[7], [2]])}, {7: 1, 2: 1}),
        (artifact(LABEL), {"label": np.array(["a", "b", "a"], dtype=object)}, {"a": 2, "b": 1}),
        (artifact(LABEL), {"label": np.array([True, True])}, {True: 2}),
        (
            artifact(PROBABILITIES, LABEL, classes=("no", "yes")),
            {"p": PROBABLE, "label": np.array([0] * 3)},
            {0: 3},
        ),
        (artifact(PROBABILITIES, LABEL, classes=("no", "yes")), {"p": PROBABLE}, {}),
        (artifact(PROBABILITIES, classes=("no", "yes")), {"p": PROBABLE}, {"yes": 2, "no": 1}),
        (artifact(PROBABILITIES), {"p": PROBABLE}, {}),
        (artifact(VALUES), {"y": np.array([[1.5]])}, {}),
        (artifact(), {}, {}),
    ],
)
def test_labels_are_counted_by_row(model, outputs, labels):
    assert dict(predicted_labels(model, outputs)) == labels


def test_an_answer_counts_for_its_version(serve_here, model_folders, tmp_path):
    variant = serve_here(servers.one_endpoint(model_folders["mixed"])).repository.select_variant(
        "e"
    )
    metrics = Metrics(tmp_path / "counted")
    outputs = {"label": np.array(["yes", "no", "yes"], dtype=object)}
    metrics.count_response(variant, "v2", "200", 0.5, outputs)
    metrics.count_response(variant, "v2", "400", 0.25, {})
    metrics.count_response(None, "v2", "404", 0.25, {})
    counted = metrics.statistics()["e", "m", "1"]
    assert replace(counted, last_request=0.0) == Statistics(2, 1, 0.75)
    page = metrics.page().decode()
    assert 'ml_predictions_total{model_version="1",prediction="yes"} 2.0' in page
    assert (
        'onnxserve_requests_total{endpoint="",model="",protocol="v2",status="404",variant="",'
        'version=""} 1.0'
    ) in page


def test_labels_are_counted_while_the_file_of_the_counters_grows(tmp_path):
    metrics = Metrics(tmp_path)
    for version in range(12):
        loaded = SimpleNamespace(
            predictor=SimpleNamespace(artifact=artifact(LABEL)), version=str(version)
        )
        variant: Any = SimpleNamespace(
            endpoint="e", loaded=loaded, labels=("e", "v", "m", loaded.version)
        )
        count = metrics.prediction_counter(variant, "v2")
        for label in range(100):
            count((1, 1, True), 0.001, 0.002, {"label": np.array([label])})
    page = metrics.page().decode()
    assert page.count("ml_predictions_total{") == 12 * 101  # including "other"
    assert 'ml_predictions_total{model_version="11",prediction="99"} 1.0' in page
