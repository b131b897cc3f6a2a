"""Start a rendered Compose project, send requests, and change it while it runs."""

import os
import subprocess
import uuid

import pytest
import requests

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.manifests.formats import FORMATS
from mlflow_deploy_plugin.ship.manifests.served import Place
from tests.docker.conftest import Container, run_docker
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.long]
ROWS = [[1.0, 2.0], [3.0, 4.0]]


def write(folder, endpoint):
    for path, text in FORMATS["compose"](endpoint, Place()).items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / f"{path}.new").write_text(text)
        os.replace(folder / f"{path}.new", folder / path)  # git replaces files in this way


PRINT_TOKEN = """
import os
from mlflow_deploy_plugin.core.settings import load_secrets
load_secrets()
print(os.environ["MLFLOW_TRACKING_TOKEN"])
"""


def test_rendered_project_serves_and_follows_its_spec(image, model_folder, tmp_path, free_port):
    if run_docker("compose", "version", check=False).returncode:
        pytest.skip("docker has no plugin compose")
    tmp_path.chmod(0o755)
    (tmp_path / "secret").write_text("of a file\n")
    name = f"onnxserve-test-{uuid.uuid4().hex[:8]}"
    config = {
        "container.image": image,
        "container.cpus": "1",
        "container.memory_bytes": str(512 * 1024**2),
        "container.secrets.MLFLOW_TRACKING_TOKEN": str(tmp_path / "secret"),
        "server.port": str(free_port),
    }
    endpoint = new_endpoint(name, str(model_folder), config)
    write(tmp_path, endpoint)

    def compose(*arguments):
        return run_docker("compose", "-f", str(tmp_path / "compose.yaml"), *arguments).stdout

    try:
        compose("up", "--detach", "--wait")
        container = Container(compose("ps", "--quiet").strip())
        answer = requests.post(
            f"http://127.0.0.1:{free_port}/invocations", json={"inputs": ROWS}, timeout=10
        )
        assert answer.json()["predictions"]["y"] == [[2.0, 4.0], [6.0, 8.0]]
        # The file of the secret is mounted where the server reads its secrets.
        token = container.run("python", "-c", PRINT_TOKEN)
        assert token == "of a file\n"
        before = container.state["StartedAt"]
        variants = {
            **endpoint.variants,
            "other": endpoint.variants[name].model_copy(update={"shadow": True}),
        }
        write(tmp_path, endpoint.model_copy(update={"variants": variants}))
        wait_until(
            lambda: '"other"' in container.run("cat", "/var/lib/onnxserve/server/wanted.json"),
            30,
            "the shadow",
        )
        assert container.state["StartedAt"] == before
    finally:
        subprocess.run(
            ["docker", "compose", "-f", tmp_path / "compose.yaml", "down", "-v", "-t", "5"],
            check=False,
        )
