"""An image with a model, started like on each platform, with the requests of that
platform.
"""

import tarfile
from contextlib import ExitStack

import pytest
from mlflow.version import VERSION as MLFLOW_VERSION

from mlflow_deploy_plugin.core.registry.model_uri import REGISTERED_META
from mlflow_deploy_plugin.ship.images.build import build_image, planned_image
from tests.docker.conftest import HARDENED, run_docker, send

# tests/serve/test_cloud.py tests the same without containers
pytestmark = [pytest.mark.docker, pytest.mark.long]

ROWS = [[1.0, 2.0], [3.0, 4.0]]
DOUBLED = [[2.0, 4.0], [6.0, 8.0]]
HOME = ["--tmpfs", "/var/lib/onnxserve"]


@pytest.fixture(scope="module")
def registered(model_folder, tmp_path_factory):
    """Return the folder of a version as MLflow downloads it: times, version 3."""
    import shutil

    folder = tmp_path_factory.mktemp("registered") / "model"
    shutil.copytree(model_folder, folder)
    (folder / REGISTERED_META).write_text("{model_name: times, model_version: '3'}")
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def baked(image, registered):
    """Return an image with that version."""
    tag = f"{image}-baked"
    with planned_image(str(registered), server_image=image) as plan:
        build_image(plan, tag, print)
    yield tag
    run_docker("rmi", "-f", tag, check=False)


@pytest.fixture
def run(docker, start):
    """Start a container without any rights, wait until it is healthy, and yield it with
    its address.
    """
    with ExitStack() as stack:

        def started(image, *options, port=8080, command):
            publish = [] if port == 8080 else ["-p", f"127.0.0.1::{port}"]
            container = stack.enter_context(
                start(image, *HARDENED, *HOME, *publish, *options, command=command)
            )
            container.wait_healthy()
            address = docker("port", container.name, f"{port}/tcp").stdout.split()[0]
            return container, f"http://{address}"

        yield started


def test_mlflow_contract(baked, run):
    """Check mlflow/pyfunc/scoring_server: /ping and /health, /version, and the four
    forms of /invocations, on 8080.
    """
    _, url = run(baked, command=[])
    assert [send(f"{url}/{route}").status for route in ("ping", "health")] == [200, 200]
    assert send(f"{url}/version").body == MLFLOW_VERSION
    answer = send(f"{url}/invocations", {"inputs": ROWS})
    assert answer.body == {"predictions": {"y": DOUBLED}}
    assert answer.headers["X-Model-Name"] == "times"
    assert answer.headers["X-Model-Version"] == "3"
    assert send(f"{url}/invocations", {"instances": ROWS}).status == 200
    assert send(f"{url}/invocations", {"rows": ROWS}).status == 400


def test_sagemaker_contract_for_unpacked_model(image, registered, run, tmp_path):
    """Check `docker run IMAGE serve` with the model's tar unpacked in /opt/ml/model:
    /ping and /invocations on 8080.
    """
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        archive.add(registered, arcname=".")
    tmp_path.chmod(0o755)
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    _, url = run(image, "-v", f"{tmp_path / 'unpacked'}:/opt/ml/model:ro", command=["serve"])
    assert send(f"{url}/ping").status == 200
    assert send(f"{url}/invocations", {"instances": ROWS}).body == {"predictions": {"y": DOUBLED}}


def test_image_without_model_is_an_error(image, docker):
    ended = docker("run", "--rm", image, check=False)
    assert ended.returncode == 2
    assert ended.stderr.endswith("\nError: specify either MODEL or --spec FILE\n")
