"""A deployment with API keys: a caller's key from its creation to its revocation, and no key for its own machine."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from click.testing import CliRunner
from mlflow.deployments import BaseDeploymentClient

from mlflow_deploy_plugin.cli import main
from tests.support.deployments import empty_home, save_models
from tests.support.waiting import wait_until

ROW = {"inputs": [[1.0, 2.0]]}


@pytest.fixture
def client(tmp_path: Path) -> Iterator[BaseDeploymentClient]:
    with empty_home(tmp_path) as opened:
        yield opened


def status(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(f"{url}/invocations", json=ROW, headers=headers, timeout=10).status_code


def test_a_key_holds_from_its_creation_to_its_revocation(client: BaseDeploymentClient, tmp_path: Path) -> None:
    model = save_models(tmp_path / "models").once
    client.create_deployment("sum", model, config={"server.api_keys": "true"})
    url = client.get_deployment("sum")["url"]
    assert status(url) == 401
    made = CliRunner().invoke(main, ["keys", "create", "shop", "--endpoint", "sum"])
    key = made.stdout.strip()
    wait_until(lambda: status(url, key) == 200, 20, "an answer to the key")
    assert client.predict("sum", [[1, 2]])["predictions"] == [{"y": 3.0}]  # by the key in the server's folder
    shown = CliRunner().invoke(main, ["list"]).output
    assert "sum" in shown
    CliRunner().invoke(main, ["keys", "revoke", "shop"])
    wait_until(lambda: status(url, key) == 401, 20, "the refusal of the key")
    log = next(tmp_path.rglob("server.log")).read_text()
    assert key not in log
    assert "Traceback" not in log
