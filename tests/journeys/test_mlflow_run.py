"""Tests of `mlflow run` in new environments, at the root and in a project's folder.
README and the demo use `--env-manager local`.
"""

import os
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from mlflow import MlflowClient

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
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
    }
    command = [sys.executable, "-m", "mlflow", "run", str(folder), "-e", *entry_point, *arguments]

    result = subprocess.run(
        command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True
    )

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
    project = ROOT / "projects" / "batch"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "run",
        str(project),
        "-e",
        "batch",
        "--env-manager",
        "local",
    ]
    command += list(
        chain.from_iterable(("-P", f"{name}={value}") for name, value in parameters.items())
    )
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": store,
    }

    result = subprocess.run(
        command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True
    )

    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "out" / "rows.csv").read_text() == '"id","y"\n"a",1\n"b",2\n'
    (run,) = MlflowClient(store).search_runs(["0"])
    assert run.data.metrics["rows"] == 2
    assert run.inputs.dataset_inputs[0].dataset.name == "rows.csv"
