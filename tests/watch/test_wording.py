"""The reasons for which a monitor does not judge,
and the errors for unreadable files.
"""

from pathlib import Path

import numpy as np
import pytest

from mlflow_deploy_plugin.core.errors import OnnxserveError
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.watch.drift.references.rows import load_datasets
from mlflow_deploy_plugin.watch.run import KINDS
from tests.watch.kinds.conftest import CLASSIFIER, REGRESSOR, EndpointWorld

DRIFT = {"kind": "drift"}
ACCURACY = {"kind": "performance", "require": ["accuracy>=0.8"]}
ERRORS = {"kind": "service_level", "require": ["error_rate<=1%"]}
AGREES = {"kind": "shadow", "require": ["disagreement<=1%"]}


@pytest.fixture
def endpoint(tmp_path):
    return EndpointWorld(Settings(home=tmp_path / "home"))


@pytest.mark.parametrize(
    ("model", "columns", "spec", "reason"),
    [
        (
            CLASSIFIER,
            {},
            DRIFT,
            "the window has no rows, and fewer than 7 earlier windows are known",
        ),
        (
            CLASSIFIER,
            {"_latency_us": np.full(50, 900)},
            ERRORS,
            "the window has 50 requests; min_rows is 100",
        ),
        (
            CLASSIFIER,
            {"prediction": np.zeros(300, int)},
            DRIFT,
            (
                "model flight-delay version 1 has no reference; log the model with "
                "mlflow_deploy_plugin.log_model, which stores a sample of the data "
                "(reference_data=, event_time=)"
            ),
        ),
        (
            CLASSIFIER,
            {"prediction": np.zeros(300, int)},
            AGREES,
            "no shadow has computed a row in the window",
        ),
        (
            CLASSIFIER,
            {"prediction": np.zeros(300, int)},
            ACCURACY,
            (
                "accuracy: 0 of 300 rows have a label; min_rows is 100; the metric is not "
                "estimated: the class probabilities, which an estimate needs, are not available: "
                "they are read from the log for at most 8 labels, and the model has 2"
            ),
        ),
        (
            CLASSIFIER,
            {"text": ["a"] * 300},
            ACCURACY,
            "the log has no column with a single answer per row",
        ),
        (
            REGRESSOR,
            {"prediction": np.ones(300)},
            ACCURACY,
            (
                "accuracy: 0 of 300 rows have a label; min_rows is 100; the metric is not "
                "estimated: the model returns numbers, and their errors cannot be estimated "
                "without labels"
            ),
        ),
    ],
)
def test_the_reason_why_a_window_is_not_judged(endpoint, model, columns, spec, reason):
    endpoint.serve(model)
    if columns:
        endpoint.answer(columns)

    judged = KINDS[spec["kind"]](endpoint.ask(**spec, min_rows=100))

    assert judged.state == "not judged"
    assert judged.reason == reason


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.csv", None, "the dataset none.csv does not exist"),
        (
            "twice.csv",
            "a,a\n1,2\n",
            "the dataset twice.csv cannot be read: it has two columns named 'a'",
        ),
        ("empty.csv", "", "the dataset empty.csv has no rows"),
    ],
)
def test_the_message_of_rows_that_cannot_be_read(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(OnnxserveError) as refused:
        load_datasets([name])
    assert str(refused.value) == message
