"""Tests of the three commands in each project's README: train, serve, ask."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.support.browser import CHROMIUM, chromium
from tests.support.guides import ROOT, blocks

PROJECTS = sorted(
    path.parent.name
    for path in ROOT.glob("projects/*/README.md")
    if "onnxserve serve" in path.read_text()
)
"""The projects that do not need another project; `distill` needs a teacher."""


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("project", PROJECTS)
def test_the_three_commands_of_a_readme_train_serve_and_ask(project, tmp_path, serve, free_port):
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
    served = serve(*shlex.split(serving)[2:]).wait_ready()
    answer = run(f"{ask} --fail-with-body -sS")
    assert re.search(r'"predictions?":', answer)
    if project == "image_resnet18" and CHROMIUM:
        see_the_picture_recognised(served.url, ROOT / "projects" / project / "example.png")


def see_the_picture_recognised(url, picture):
    """Upload the picture in Chromium; the page shows as many probabilities as there are
    digits.
    """
    with chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.locator("input[type=file][accept='image/*']").set_input_files(picture)
        page.get_by_text("is sent instead of the numbers").wait_for()
        page.get_by_role("button", name="Predict").click()
        page.locator("#answer td:not(.row-number), #answer .value").first.wait_for()
        shown = page.locator("#answer").inner_text()
    assert len(re.findall(r"\d\.\d+|\de-\d+", shown)) >= 8
