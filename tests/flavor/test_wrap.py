from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sklearn.pipeline import Pipeline

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.errors import InvalidConfig


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parity": "maybe"}, "parity: 'maybe' is not one of require, warn"),
        ({"pyfunc_predict_fn": "transform"}, "pyfunc_predict_fn: 'transform' is not one of predict, predict_proba"),
        ({"event_time": "when"}, "event_time: the reference data has no column 'when'"),
        ({"event_time": ["2013-01-01"]}, "event_time has 1 values, the reference data 300 rows"),
        ({"event_time": ["x"] * 300}, "event_time: "),
    ],
)
def test_wrong_argument_is_named(
    arguments: dict[str, Any], message: str, model: Pipeline, table: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        onnxserve.save_model(model, tmp_path / "model", input_example=table, **arguments)
