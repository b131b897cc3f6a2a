"""`mlflow run . -e train` in environments that MLflow makes. (README and demo run it with `--env-manager local`.)"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["--env-manager", "uv"], id="uv"),
        pytest.param(
            [], id="default", marks=pytest.mark.skipif(not shutil.which("pyenv"), reason="MLflow's default needs pyenv")
        ),
    ],
)
@pytest.mark.timeout(1200)  # the environments are made from nothing
def test_the_flight_model_is_trained_proven_and_registered(arguments: list[str], tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
    }
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train", "-P", "max_iter=10", *arguments]

    result = subprocess.run(command, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
    version = MlflowClient(store).get_model_version("flight-delay", "1")
    assert version.tags["onnxserve.parity"] == "proven"
