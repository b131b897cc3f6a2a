"""Tests of `mlflow run` in new environments, at the root and in a project's folder.
README and the demo use `--env-manager local`.
"""

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.mlflow_runs import mlflow_run, parameter_options
from tests.support.models import columns, write_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--env-manager", "uv"], id="uv"),
        pytest.param(
            [],
            id="default",
            marks=pytest.mark.skipif(
                not shutil.which("pyenv"), reason="MLflow's default needs pyenv"
            ),
        ),
    ],
)
@pytest.mark.parametrize(
    ("folder", "entry_point", "model"),
    [
        pytest.param(ROOT, ["train", "-P", "max_iter=10"], "flight-delay", id="root"),
        pytest.param(
            ROOT / "projects" / "house_price", ["house_price"], "house-price", id="house_price"
        ),
    ],
)
@pytest.mark.timeout(1200)  # MLflow creates the environments from scratch.
def test_project_trains_and_registers_a_model(folder, entry_point, model, arguments, tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    options = ["-e", *entry_point, *arguments]
    environments = str(tmp_path / "environments")
    variables = {"MLFLOW_TRACKING_URI": store, "MLFLOW_ENV_ROOT": environments}

    result = mlflow_run(folder, *options, cwd=tmp_path, **variables)

    assert result.returncode == 0, result.stdout + result.stderr
    version = MlflowClient(store).get_model_version(model, "1")
    assert version.tags["onnxserve.parity"] == "proven"


@pytest.mark.timeout(120)
def test_batch_project_logs_to_its_run(new_database, tmp_path):
    store = new_database(tmp_path)
    model = write_model(tmp_path / "same", signature=columns(x="float"))
    (tmp_path / "rows.csv").write_text("id,x\na,1\nb,2\n")
    parameters = {
        "model": model,
        "input": tmp_path / "rows.csv",
        "output": tmp_path / "out",
        "keep": "id",
    }
    options = ["-e", "batch", "--env-manager", "local", *parameter_options(parameters)]

    result = mlflow_run(
        ROOT / "projects" / "batch", *options, cwd=tmp_path, MLFLOW_TRACKING_URI=store
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "rows.csv").read_text() == '"id","y"\n"a",1\n"b",2\n'
    (run,) = MlflowClient(store).search_runs(["0"])
    assert run.data.metrics["rows"] == 2
    assert run.inputs.dataset_inputs[0].dataset.name == "rows.csv"
