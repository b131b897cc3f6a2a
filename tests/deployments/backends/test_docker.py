"""The docker target without an engine; on one it is tried in tests/docker/test_docker_target.py."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.deployments.backends.containers import check_registry
from mlflow_deploy_plugin.deployments.backends.docker import DockerBackend
from mlflow_deploy_plugin.errors import DeploymentFailed, InvalidConfig
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import new_endpoint


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("sqlite:////home/ada/mlflow.db", "the registry sqlite:… is a file of this machine, and no container reads it"),
        ("/home/ada/mlruns", "the registry file:… is a file of this machine"),
        ("http://127.0.0.1:5000", "say -C container.network=host; or let `mlflow server --host` listen on docker0's"),
        ("http://localhost:5000", "no container reaches http://localhost:5000, this machine's loopback"),
    ],
)
def test_a_registry_that_no_container_reaches_is_refused_with_what_would_do(uri: str, said: str) -> None:
    with pytest.raises(InvalidConfig) as refused:
        check_registry(uri, is_host=False)
    assert said in refused.value.message


def test_a_registry_within_reach_is_not() -> None:
    check_registry("http://172.17.0.1:5000", is_host=False)
    check_registry("http://127.0.0.1:5000", is_host=True)
    check_registry("databricks-uc", is_host=False)


def test_no_engine_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///of/nobody.sock")
    backend = DockerBackend(Settings(home=tmp_path))

    with pytest.raises(DeploymentFailed, match=r"^no Docker engine answers at unix:///of/nobody\.sock: start it"):
        backend.apply(new_endpoint("e", "/model", {"server.port": 8080}), print)
