"""`onnxserve build-docker --test` on a real engine: images that pass, and images that
must not ship.
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from tests.docker.conftest import run_docker
from tests.docker.test_build_docker import invoke
from tests.support.models import mixed_model
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

pytestmark = pytest.mark.docker


@pytest.fixture
def tag(image, docker):
    yield (name := f"{image}-trial")
    # The container is always removed.
    assert docker("ps", "-aq", "--filter", f"ancestor={name}").stdout == ""
    docker("rmi", "-f", name, check=False)


def test_image_passes_on_example_or_random_rows(image, tag, model_folder, tmp_path):
    mixed = mixed_model(tmp_path / "mixed")
    rows = {
        "columns": ["carrier", "distance", "hour", "late"],
        "data": [["AA", 1.5, 3, True], ["UA", 2.5, 4, False]],
    }
    (mixed / INPUT_EXAMPLE).write_text(json.dumps({"dataframe_split": rows}))
    for folder, tried in ((model_folder, "10 random rows"), (mixed, "2 example rows")):
        done = invoke(folder, "-n", tag, "--server-image", image, "--test")
        assert done.exit_code == 0, done.output
        assert mentions(done.stdout.splitlines()[-1], tag, tried, "difference 0")


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_test_removes_its_container(number, image, tag, model_folder, docker, tmp_path):
    sleeping = f"{image}-sleeping"
    (tmp_path / "Dockerfile").write_text(f'FROM {image}\nENTRYPOINT ["sleep", "600"]\n')
    run_docker("build", "-q", "-t", sleeping, str(tmp_path))
    try:
        command = f"build-docker {model_folder} -n {tag} --server-image {sleeping} --test".split()
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow_deploy_plugin.cli", *command], process_group=0
        )
        running = ("ps", "-q", "--filter", f"ancestor={tag}")
        wait_until(lambda: docker(*running).stdout, 60, "the container runs")
        os.kill(process.pid, number)
        assert process.wait(60) == -signal.SIGINT
    finally:
        docker("rmi", "-f", sleeping, check=False)
