"""Tests of a deployment with API keys: a caller's key from creation to revocation, and
calls from its own machine.
"""

import pytest
import requests
from click.testing import CliRunner

from mlflow_deploy_plugin.cli.commands import main
from tests.support.deployments import empty_home, save_models
from tests.support.waiting import free_port, wait_until

ROW = {"inputs": [[1.0, 2.0]]}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("keys")


@pytest.fixture(scope="module")
def deployed(home):
    """Create the deployment `sum`, which requires keys, allows unloading and has a gRPC
    port.
    """
    config = {
        "server.api_keys": "true",
        "server.model_control_mode": "explicit",
        "server.grpc_port": str(free_port()),
    }
    with empty_home(home) as client:
        client.create_deployment("sum", save_models(home / "models").once, config=config)
        yield client


def status(url, key=""):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(f"{url}/invocations", json=ROW, headers=headers, timeout=60).status_code


@pytest.mark.long
def test_key_is_valid_until_revoked(deployed, home):
    url = deployed.get_deployment("sum")["url"]
    assert status(url) == 401
    made = CliRunner().invoke(main, ["keys", "create", "shop", "--endpoint", "sum"])
    key = made.stdout.strip()
    wait_until(lambda: status(url, key) == 200, what="an answer to the key")
    # The client uses the key in the server's folder.
    assert deployed.predict("sum", [[1, 2]])["predictions"] == [{"y": 3.0}]
    shown = CliRunner().invoke(main, ["list"]).output
    assert "sum" in shown
    CliRunner().invoke(main, ["keys", "revoke", "shop"])
    wait_until(lambda: status(url, key) == 401, what="the refusal of the key")
    log = next(home.rglob("server.log")).read_text()
    assert key not in log
    assert "Traceback" not in log
