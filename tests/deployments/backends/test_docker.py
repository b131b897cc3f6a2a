"""The docker target without an engine; on one it is tried in tests/docker/test_docker_target.py."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.deployments.backends.docker import DockerBackend
from mlflow_deploy_plugin.errors import DeploymentFailed
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import new_endpoint


def test_no_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///of/nobody.sock")
    backend = DockerBackend(Settings(home=tmp_path))

    with pytest.raises(DeploymentFailed, match=r"^no Docker engine answers at unix:///of/nobody\.sock: start it"):
        backend.apply(new_endpoint("e", "/model", {"server.port": 8080}), print)
