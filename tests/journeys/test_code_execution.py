"""An ONNX version needs no model code: each command works with
MLFLOW_ALLOW_MODEL_CODE_EXECUTION=false, and a version without an ONNX form is refused.

The loader of the versions' pyfunc does not exist, so that each attempt to load a version
as a pyfunc fails, also with a version of MLflow that does not know the variable.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import psutil
import pytest
import requests
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression

import mlflow_deploy_plugin
from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.model_code import MODEL_CODE
from mlflow_deploy_plugin.core.registry.model_files import download
from mlflow_deploy_plugin.core.registry.resolution import resolve
from tests.support.pyfuncs import save_pyfuncs
from tests.support.serving import Served
from tests.support.tracking import tracking_at

REFUSAL = f"a version without an ONNX form runs its own code, and {MODEL_CODE} does not allow this"
ROWS = "a,b,when,name\n0.5,1.0,2013-07-01,x\n-2.0,0.25,2013-07-02,y\n"


@pytest.fixture
def registry(
    tmp_path: Path,
    new_database: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[MlflowClient]:
    """A registered model `toy` with two ONNX versions, and a pyfunc as version 3. Model
    code is switched off.
    """
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)  # MLflow writes artifacts here.
    (pyfunc,) = save_pyfuncs(tmp_path, only=["days"]).values()
    (tmp_path / "rows.csv").write_text(ROWS)
    monkeypatch.setenv(MODEL_CODE, "false")
    # In this process, MLflow finds no function that loads an ONNX version as a pyfunc.
    monkeypatch.delitem(mlflow_deploy_plugin._HOMES, "_load_pyfunc")
    with tracking_at(new_database(tmp_path)):
        for seed in (0, 1):
            log_version(seed)
        for file in tmp_path.glob("mlruns/**/MLmodel"):
            text = file.read_text()
            file.write_text(text.replace("loader_module: mlflow_deploy_plugin", "loader_module: no"))
        client = MlflowClient()
        client.create_model_version("toy", pyfunc.as_uri())
        client.set_registered_model_alias("toy", "champion", "1")
        yield client


def log_version(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(120, 2)), columns=["a", "b"])
    model = LogisticRegression().fit(rows, rows.a > rows.b)
    with mlflow.start_run(experiment_id="0"):
        mlflow_deploy_plugin.log_model(
            model,
            name="model",
            input_example=rows,
            registered_model_name="toy",
        )


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_code_execution_is_not_needed_to_log_a_version(
    registry: MlflowClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    logging.getLogger("mlflow").propagate = True
    log_version(2)
    assert [record for record in caplog.records if record.name.startswith("mlflow.")] == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("gate", "toy", "2"),
        ("promote", "toy", "2", "--to", "@champion"),
        ("diff", "models:/toy/1", "models:/toy/2"),
        ("card", "models:/toy/1", "-o", "card.html"),
        ("batch", "-m", "models:/toy/1", "-i", "rows.csv", "-o", "out", "--workers", "1"),
        ("explain", "models:/toy/1", "--data", "rows.csv"),
        ("profile", "models:/toy/1"),
        ("export", "models:/toy/1", "-o", "exported"),
        ("optimize", "models:/toy/1", "--int8", "dynamic"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_code_execution_is_not_needed_by_a_command(
    registry: MlflowClient,
    arguments: tuple[str, ...],
) -> None:
    result = run(*arguments)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("gate", "toy", "3"),
        ("batch", "-m", "models:/toy/3", "-i", "rows.csv", "-o", "out", "--workers", "1"),
    ],
    ids=lambda arguments: str(arguments[0]),
)
def test_code_execution_is_refused_to_a_pyfunc(
    registry: MlflowClient,
    arguments: tuple[str, ...],
) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert REFUSAL in result.stderr
    assert result.stderr.count("Error: ") == 1


def test_code_execution_is_refused_by_a_server(
    registry: MlflowClient,
    serve: Callable[..., Served],
) -> None:
    served = serve("-m", "models:/toy/3")
    assert served.process.wait(60) == 1
    assert REFUSAL in served.log.read_text()


def test_code_execution_stays_off_when_an_alias_moves_to_a_pyfunc(
    registry: MlflowClient,
    serve: Callable[..., Served],
) -> None:
    served = serve("-m", "models:/toy@champion").wait_ready()
    body = {"dataframe_records": [{"a": 1.0, "b": 2.0}]}
    answer = requests.post(f"{served.url}/explain", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


def test_code_execution_is_switched_off_for_processes_that_need_none(
    registry: MlflowClient,
    serve: Callable[..., Served],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(MODEL_CODE)
    served = serve("-m", "models:/toy/3").wait_ready()
    (pyfunc,) = (
        member for member in served.members() if "mlflow_deploy_plugin.serve.pyfunc" in member.cmdline()
    )
    assert psutil.Process(pyfunc.pid).environ()[MODEL_CODE] == "false"
    assert download(resolve("models:/toy/3").source, Path("copy")).is_dir()
