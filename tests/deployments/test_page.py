"""docs/deployments.md does what it says: its blocks are taken out of the page and run, in their order."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow.deployments import BaseDeploymentClient

PAGE = (Path(__file__).parents[2] / "docs" / "deployments.md").read_text()


@pytest.mark.long
def test_the_page_runs_as_it_stands(
    client: BaseDeploymentClient, tmp_path: Path, new_database: Callable[[Path], str]
) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": new_database(tmp_path),
    }
    output = []
    for language, code in re.findall(r"^```(sh|python)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE):
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "sh" else [sys.executable, "-c", code]
        ran = subprocess.run(
            command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert ran.returncode == 0, f"{code}\n{ran.stdout}\n{ran.stderr}"
        output.append(ran.stdout)

    trained, one, several, files, python = output
    del trained
    assert '{"predictions": [0, 0, 0]}' in one
    assert "model_uri: models:/cancer/2" in one
    assert re.search(r"champion +95 +models:/cancer/1 +version 1 +running", several)
    assert json.loads(several.splitlines()[-1])[0]["traffic"] == {"challenger": 100}
    assert (
        len(pd.read_csv(tmp_path / "predictions.csv")) == len(pd.read_parquet(tmp_path / "predictions.parquet")) == 569
    )
    assert files.splitlines()[:3] == ["0", "0", "0"]
    assert "{'champion': 95, 'challenger': 5}" in python
    assert client.list_endpoints() == []
