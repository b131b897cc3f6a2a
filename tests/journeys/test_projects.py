"""Tests of the three commands in each project's README: train, serve, ask."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.guides import ROOT, blocks

PROJECTS = sorted(
    path.parent.name
    for path in ROOT.glob("projects/*/README.md")
    if "onnxserve serve" in "".join(blocks("sh", path.read_text()))
)
"""The projects that do not need another project; `distill` needs a teacher."""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("project", PROJECTS)
def test_readme_trains_serves_and_predicts(project, tmp_path, serve, free_port):
    if project == "image_resnet18":
        pytest.importorskip("torch")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    MlflowClient().create_experiment(tmp_path.name, tmp_path.as_uri())
    (block,) = blocks("sh", (ROOT / "projects" / project / "README.md").read_text())
    train, serving, ask = block.strip().replace("8080", str(free_port)).split("\n")

    def run(command):
        ran = subprocess.run(
            shlex.split(command),
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    run(f"{train} --experiment-name {tmp_path.name}")
    serve(*shlex.split(serving)[2:]).wait_ready()
    answer = run(f"{ask} --fail-with-body -sS")
    assert re.search(r'"predictions?":', answer)
