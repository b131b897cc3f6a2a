"""Tests that a model without an ONNX form can be served in the way that its error
message suggests.
"""

import re

import mlflow
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.errors import ConversionError
from tests.support.refusals import mentions
from tests.support.tracking import tracking_at

ROWS = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=["a", "b"])
NAMED = re.compile(
    r"Log it with mlflow\.(\w+)\.log_model\(…, (\w+)=\"(\w+)\"\) and deploy it with the "
    r"same command"
)


@pytest.mark.long
def test_fallback_of_the_conversion_error_is_deployable(tmp_path, client, new_database):
    model = make_pipeline(FunctionTransformer(np.sort), LogisticRegression())
    model.fit(ROWS, ROWS.a > ROWS.b)
    with tracking_at(new_database(tmp_path)):
        experiment = mlflow.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            with pytest.raises(ConversionError) as refused:
                mlflow_deploy_plugin.log_model(
                    model, name="model", input_example=ROWS, fallback="error"
                )
            (match,) = NAMED.findall(refused.value.message)
            flavor, argument, value = match
            getattr(mlflow, flavor).log_model(
                model,
                name="model",
                registered_model_name="refused",
                input_example=ROWS[:3],
                pip_requirements=[],
                **{argument: value},
            )
        created = client.create_deployment("refused", "models:/refused/1")
        assert created["state"] == "running"
        assert created["flavor"] == "python_function"
        assert mentions(created["parity"], "not applicable", "pyfunc")
        predictions = client.predict("refused", ROWS)["predictions"]
        assert predictions == model.predict(ROWS).tolist()
