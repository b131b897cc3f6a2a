"""A Docker engine, the image of this checkout, containers that are removed with their
test, and tiny models.
"""

import json
import os
import socket
import subprocess
import threading
import urllib.error
import urllib.request
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import infer_signature

from mlflow_deploy_plugin.ship.images.context import server_context
from mlflow_deploy_plugin.ship.images.engine import build
from tests.support.captured_days import two_captured_days
from tests.support.models import parse_graph
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.postgresql import postgresql_server
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
BASE_IMAGE = "python:3.11-slim-bookworm"  # the base image of docker/Dockerfile
LIMITS = ["--memory", "512m", "--cpus", "1", "--pids-limit", "128"]
RIGHTS = [
    "--read-only",
    "--tmpfs",
    "/tmp",
    "--cap-drop",
    "ALL",
    "--security-opt",
    "no-new-privileges",
]
HARDENED = ["--init", "--user", "10001", *RIGHTS, *LIMITS]


def run_docker(*arguments, check=True, timeout=280):
    """Run the Docker CLI; a failure contains its output."""
    result = subprocess.run(
        ["docker", *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert not check or result.returncode == 0, (
        f"docker {' '.join(arguments)}: {result.stderr[-4000:]}"
    )
    return result


@contextmanager
def built_image(target, timeout):
    """Return the tag of an image of this checkout's Dockerfile, which is removed at the
    end; Docker's build cache is kept.
    """
    tag = f"onnxserve-test:{target}-{uuid.uuid4().hex[:12]}"
    run_docker(
        "build",
        "-q",
        "-f",
        "docker/Dockerfile",
        "--target",
        target,
        "-t",
        tag,
        str(ROOT),
        timeout=timeout,
    )
    try:
        yield tag
    finally:
        run_docker("rmi", "-f", tag, check=False)


@pytest.fixture(scope="session")
def docker():
    """Return the Docker CLI as a function, if an engine is running."""
    try:
        reached = run_docker("info", check=False, timeout=30)
    except FileNotFoundError:
        pytest.skip("the docker command is not installed")
    if reached.returncode:
        pytest.skip(f"no Docker engine answers: {reached.stderr.strip().splitlines()[-1]}")
    return run_docker


@pytest.fixture(scope="session")
def image(docker, alone):
    """Return the cpu image as built by `onnxserve build-docker`; the first worker of a
    test run fills Docker's cache.
    """
    tag = f"onnxserve-test:cpu-{uuid.uuid4().hex[:12]}"
    try:
        with alone("image"):
            build(server_context(), tag, print, ("--target", "cpu"))
        yield tag
    finally:
        run_docker("rmi", "-f", tag, check=False)


@pytest.fixture(scope="session")
def gpu_image(docker):
    with built_image("gpu", timeout=1500) as tag:
        yield tag


@pytest.fixture(scope="session")
def controller_image(docker):
    with built_image("controller", timeout=1500) as tag:
        yield tag


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any


def send(url, document=None):
    """Send a JSON document by POST, or GET without a document. The body of the response
    is JSON or text.
    """
    data = None if document is None else json.dumps(document).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        response = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        response = error
    with response:
        text = response.read().decode()
    # the body of /ping is empty
    is_json = "json" in response.headers.get("Content-Type", "") and text.strip() != ""
    return Answer(
        response.status or 0, dict(response.headers), json.loads(text) if is_json else text
    )


@dataclass(frozen=True)
class Container:
    """A running container of the image, whose port 8080 is published on a free port of
    this machine.
    """

    name: str

    @property
    def state(self):
        return json.loads(run_docker("inspect", "-f", "{{json .State}}", self.name).stdout)

    @property
    def logs(self):
        result = run_docker("logs", self.name, check=False)
        return result.stdout + result.stderr

    def run(self, *command):
        return run_docker("exec", self.name, *command).stdout

    def wait_healthy(self):
        """Wait for the image's own HEALTHCHECK."""

        def is_healthy():
            state = self.state
            assert state["Running"], f"the container ended:\n{self.logs}"
            return bool(state["Health"]["Status"] == "healthy")

        wait_until(is_healthy, 60, "the container is healthy")

    def ask(self, rows):
        address = run_docker("port", self.name, "8080/tcp").stdout.split()[0]
        return send(f"http://{address}/invocations", {"inputs": rows})


@contextmanager
def started(image, *options, command):
    """Run a container of `image`;
    it and its anonymous volume are removed at the end.
    """
    name = f"onnxserve-test-{uuid.uuid4().hex[:12]}"
    run_docker(
        "run",
        "-d",
        "--name",
        name,
        "-p",
        "127.0.0.1::8080",
        "--health-interval",
        "1s",
        *options,
        image,
        *command,
    )
    try:
        yield Container(name)
    finally:
        run_docker("rm", "-f", "-v", name, check=False)


@pytest.fixture(scope="session")
def times():
    """Write the graph y = factor · x, float32 (batch, 2) → (batch, 2)."""
    return lambda factor: parse_graph(
        f"times (float[N,2] x) => (float[N,2] y) <float[1] factor = {{{float(factor)}}}> {{ y = "
        "Mul(x, factor) }"
    )


@pytest.fixture(scope="session")
def model_folder(times, tmp_path_factory):
    """Return a stock `mlflow.onnx` model that doubles its input and is readable for
    every user.
    """
    folder = tmp_path_factory.mktemp("docker") / "model"
    example = np.ones((1, 2), np.float32)
    mlflow.onnx.save_model(
        times(2),
        str(folder),
        signature=infer_signature(example, example),
        pip_requirements=["onnxruntime"],
    )
    folder.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def start():
    """Return a function that starts containers; each and its anonymous volume are
    removed at the end of its `with`.
    """
    return started


@pytest.fixture(scope="module")
def hardened(image, model_folder):
    """Run the image with every restriction of docker/README.md
    and the mounted model.
    """
    options = [*HARDENED, "-v", f"{model_folder}:/model:ro"]
    with started(image, *options, command=["serve", "/model", "--insecure"]) as container:
        container.wait_healthy()
        yield container


@pytest.fixture(scope="session")
def gateway(docker):
    """Return docker0's address: the default route of a container. The engine does not
    always report it.
    """
    routes = run_docker("run", "--rm", BASE_IMAGE, "cat", "/proc/net/route").stdout.splitlines()
    default = next(fields[2] for fields in map(str.split, routes) if fields[1] == "00000000")
    return socket.inet_ntoa(bytes.fromhex(default)[::-1])


@pytest.fixture(scope="module")
def tracking_uri(gateway, new_database, tmp_path_factory):
    """Run an MLflow server on docker0's address, where containers reach it; this
    process uses it as well.
    """
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"), gateway)
    new_database(server.folder)
    try:
        server.start()
        with tracking_at(server.url):
            yield server.url
    finally:
        server.kill()


@pytest.fixture
def two_days(gateway, new_database, serve, tmp_path):
    """Return two captured days whose data containers can reach; the S3 API must also be
    reachable.
    """
    if "//127." in os.environ.get("AWS_ENDPOINT_URL", ""):
        pytest.skip("the S3 API at AWS_ENDPOINT_URL is out of containers' reach")
    server = MlflowServer(tmp_path, gateway)
    new_database(tmp_path)
    with (
        postgresql_server(gateway) as store_url,
        two_captured_days(server, store_url, serve) as made,
    ):
        yield made


@contextmanager
def load(url, document):
    """Send a document with four clients without pauses, two of them on connections that
    they keep. Yield the bodies of the responses.
    """
    answers: Counter[str] = Counter()
    is_over = threading.Event()
    body = json.dumps(document).encode()

    def ask(keeps):
        connection = HTTPConnection(url.removeprefix("http://"), timeout=20)
        while not is_over.is_set():
            try:
                connection.request(
                    "POST", "/invocations", body, {"Content-Type": "application/json"}
                )
                answers[str(connection.getresponse().read())] += 1
            except (OSError, HTTPException) as error:
                answers[repr(error)] += 1
                connection.close()
            if not keeps:
                connection.close()

    threads = [threading.Thread(target=ask, args=(keeps,)) for keeps in (True, False, True, False)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: answers, what="the first answer")
        yield answers
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
