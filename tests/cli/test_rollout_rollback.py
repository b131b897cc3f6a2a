"""What `onnxserve rollback` takes before it does anything: it is typed when something is wrong."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mlflow_deploy_plugin.spec import new_endpoint
from mlflow_deploy_plugin.store import open_store

CODE = """
import sys
from mlflow_deploy_plugin.cli import main
try:
    main(["rollback", "flights", "--to", "1"])
finally:
    print(sorted({"pandas", "scipy", "sklearn", "shap", "onnxruntime"} & set(sys.modules)))
"""


def test_it_asks_the_registry_without_pandas_and_its_like(tmp_path: Path, new_database: Callable[[Path], str]) -> None:
    environment = {**os.environ, "ONNXSERVE_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": new_database(tmp_path)}
    store = open_store(f"sqlite:///{tmp_path}/onnxserve.db")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/flight-delay/Production"))
    store.close()

    said = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False, timeout=120
    )

    assert said.stdout == "[]\n"
    assert said.returncode == 1
    assert said.stderr.startswith("Error: model flight-delay version 1 does not exist: ")
