"""What has no ONNX form is served all the same by the way that its refusal names, word for word."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import mlflow.pytorch
import mlflow.sklearn
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.deployments import BaseDeploymentClient
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

import mlflow_deploy_plugin
from mlflow_deploy_plugin.errors import ConversionError
from support.tracking import tracking_at

ROWS = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=["a", "b"])
NAMED = re.compile(r"Log it with mlflow\.(\w+)\.log_model\(…, (\w+)=\"(\w+)\"\), and deploy it by the same command")


class Turning(torch.nn.Module):
    """Its answer depends on its values, by Python's own `if`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if bool(x.sum() > 0) else -x


PIPELINE = make_pipeline(FunctionTransformer(np.square), LogisticRegression()).fit(ROWS, ROWS.a.abs() > 0.5)


@pytest.fixture
def by_value() -> Iterator[None]:
    """The class of this file goes into the pickle, as one of a notebook does."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("model", "example", "answers"),
    [
        pytest.param(PIPELINE, ROWS, PIPELINE.predict(ROWS).tolist(), id="sklearn"),
        pytest.param(
            Turning(),
            ROWS.to_numpy(np.float32),
            Turning()(torch.from_numpy(ROWS.to_numpy(np.float32))).tolist(),
            id="torch",
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_model_that_is_not_converted_is_logged_and_deployed_as_its_refusal_says(
    tmp_path: Path,
    client: BaseDeploymentClient,
    new_database: Callable[[Path], str],
    by_value: None,
    model: Any,
    example: Any,
    answers: list[Any],
) -> None:
    with tracking_at(new_database(tmp_path)):
        experiment = mlflow.create_experiment("e", artifact_location=str(tmp_path / "artifacts"))
        with mlflow.start_run(experiment_id=experiment):
            with pytest.raises(ConversionError) as refused:
                mlflow_deploy_plugin.log_model(model, name="model", input_example=example)
            (found,) = NAMED.findall(refused.value.message)
            flavor, argument, value = found
            getattr(mlflow, flavor).log_model(
                model,
                name="model",
                registered_model_name="refused",
                input_example=example[:3],
                pip_requirements=[],
                **{argument: value},
            )

        created = client.create_deployment("refused", "models:/refused/1")

        assert (created["state"], created["flavor"]) == ("running", "python_function")
        assert created["parity"] == "not applicable: a pyfunc is the original itself"
        given = example if isinstance(example, pd.DataFrame) else example.tolist()
        assert client.predict("refused", given)["predictions"] == answers
