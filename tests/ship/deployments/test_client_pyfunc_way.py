"""Tests that a model without an ONNX form can be served in the way that its error
message suggests.
"""

import re
from typing import Any

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


def ordered():
    """Return a scikit-learn model that contains a Python function, rows, and its
    answers.
    """
    model = make_pipeline(FunctionTransformer(np.sort), LogisticRegression()).fit(
        ROWS, ROWS.a > ROWS.b
    )
    return model, ROWS, model.predict(ROWS).tolist()


def turning():
    """Return a torch module with a Python `if` that depends on its values, rows, and
    its answers.
    """
    torch = pytest.importorskip("torch")

    # This class is pickled by value, as a class in a notebook is.
    class Turning(torch.nn.Module):  # type: ignore[misc,name-defined]
        def forward(self, x: Any) -> Any:
            return x * 2 if bool(x.sum() > 0) else -x

    rows = ROWS.to_numpy(np.float32)
    return Turning(), rows, Turning()(torch.from_numpy(rows.copy())).tolist()


@pytest.mark.long
@pytest.mark.parametrize("made", [ordered, turning])
def test_fallback_of_the_conversion_error_is_deployable(tmp_path, client, new_database, made):
    model, example, answers = made()
    with tracking_at(new_database(tmp_path)):
        experiment = mlflow.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            with pytest.raises(ConversionError) as refused:
                mlflow_deploy_plugin.log_model(
                    model, name="model", input_example=example, fallback="error"
                )
            (match,) = NAMED.findall(refused.value.message)
            flavor, argument, value = match
            getattr(mlflow, flavor).log_model(
                model,
                name="model",
                registered_model_name="refused",
                input_example=example[:3],
                pip_requirements=[],
                **{argument: value},
            )

        created = client.create_deployment("refused", "models:/refused/1")

        assert created["state"] == "running"
        assert created["flavor"] == "python_function"
        assert mentions(created["parity"], "not applicable", "pyfunc")
        rows = example if isinstance(example, pd.DataFrame) else example.tolist()
        assert client.predict("refused", rows)["predictions"] == answers
