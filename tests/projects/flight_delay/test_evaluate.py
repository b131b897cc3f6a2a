"""Tests of the models that can be evaluated on flights."""

import mlflow
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.evaluate import evaluate
from tests.support.tracking import tracking_at

ROWS = pd.DataFrame({"a": [0.0, 1.0, 2.0, 3.0]})
MODEL = LogisticRegression().fit(ROWS, [0, 0, 1, 1])


@pytest.mark.long
@pytest.mark.parametrize(
    ("save", "said"),
    [
        (
            lambda path: onnxserve.save_model(MODEL, path, input_example=ROWS),
            "these flights: .*'a' is missing",
        ),
        (
            lambda path: mlflow.sklearn.save_model(MODEL, path, pip_requirements=[]),
            "has no ONNX form",
        ),
    ],
)
def test_a_model_that_judges_no_flights_is_refused_in_one_line(save, said, tmp_path, new_database):
    save(tmp_path / "model")

    with tracking_at(new_database(tmp_path)), pytest.raises(InvalidConfig, match=said) as refused:
        evaluate(str(tmp_path / "model"), 4, 4)

    assert "\n" not in refused.value.message
