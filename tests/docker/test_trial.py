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
from mlflow_deploy_plugin.ship.images.engine import image_fields
from tests.docker.conftest import run_docker
from tests.docker.test_build_docker import invoke
from tests.support.models import mixed_model, write_model
from tests.support.refusals import mentions
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.long]


@pytest.fixture
def tag(image, docker):
    yield (name := f"{image}-trial")
    # The container is always removed.
    assert docker("ps", "-aq", "--filter", f"ancestor={name}").stdout == ""
    docker("rmi", "-f", name, check=False)


@pytest.fixture
def derived(image, docker, tmp_path):
    """Return a function that builds a server image which runs a shell command instead
    of the server.
    """
    name = f"{image}-derived"

    def build(command):
        entry = (
            f"FROM {image}\nCOPY Dockerfile other* /srv/other/\n"
            f'ENTRYPOINT ["sh", "-c", "{command}"]\n'
        )
        (tmp_path / "Dockerfile").write_text(entry)
        run_docker("build", "-q", "-t", name, str(tmp_path))
        return name

    yield build
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


def test_image_with_other_answers_is_not_pushed(derived, model_folder, tmp_path):
    graph = "times (float[N,2] x) => (float[N,2] y) <float[1] f = {3.0}> { y = Mul(x, f) }"
    write_model(tmp_path / "other", graph)
    server = derived("exec onnxserve serve /srv/other --insecure")
    name = "127.0.0.1:9/trial:1"
    done = invoke(model_folder, "-n", name, "--server-image", server, "--test", "--push")
    fields = image_fields(name)
    run_docker("rmi", "-f", name, check=False)
    assert done.exit_code == 1
    assert mentions(done.stderr.splitlines()[-1], name, "failed its test", "10 of 10 rows")
    assert fields is not None


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_test_removes_its_container(number, derived, tag, model_folder, docker):
    server = derived("sleep 600")
    command = f"build-docker {model_folder} -n {tag} --server-image {server} --test".split()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow_deploy_plugin.cli", *command], process_group=0
    )
    running = ("ps", "-q", "--filter", f"ancestor={tag}")
    wait_until(lambda: docker(*running).stdout, 60, "the container runs")
    os.kill(process.pid, number)
    assert process.wait(60) == -signal.SIGINT
