"""An image with a model, started like on each platform, with the requests of that
platform.
"""

import tarfile
from contextlib import ExitStack

import pytest

from mlflow_deploy_plugin.core.registry.model_uri import REGISTERED_META
from tests.docker.conftest import HARDENED, send

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
