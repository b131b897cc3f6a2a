"""Tests of the docker target without an engine; tests/docker/test_docker_target.py uses
an engine.
"""

import socket
from concurrent.futures import ThreadPoolExecutor

from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.ship.deployments.backends.docker import DockerBackend
from tests.support.refusals import refused


def test_missing_engine_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///of/nobody.sock")
    backend = DockerBackend(Settings(home=tmp_path))

    with refused(DeploymentFailed, "no Docker engine", "unix:///of/nobody.sock"):
        backend.apply(new_endpoint("e", "/model", {"server.port": 8080}), print)


def test_hanging_engine_is_asked_concurrently(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as hanging, ThreadPoolExecutor(2) as pool:
        hanging.settimeout(10)
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{hanging.getsockname()[1]}")
        futures = [
            pool.submit(DockerBackend(Settings(home=tmp_path)).is_running, name) for name in "ab"
        ]
        try:
            connections = [hanging.accept()[0] for _ in futures]
        finally:
            hanging.close()  # Closing the listener ends the waiting requests.
        for connection in connections:
            connection.close()
        for future in futures:
            with refused(DeploymentFailed, "no Docker engine", "tcp://127.0.0.1"):
                future.result()
