"""Tests of a deployment with API keys: a caller's key from creation to revocation, and
calls from its own machine.
"""

import pytest
import requests

from tests.support.commands import done
from tests.support.deployments import empty_home, save_models
from tests.support.waiting import wait_until

ROW = {"inputs": [[1.0, 2.0]]}


def status(url, key=""):
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return requests.post(f"{url}/invocations", json=ROW, headers=headers, timeout=60).status_code


@pytest.mark.long
def test_key_is_valid_until_revoked(tmp_path):
    with empty_home(tmp_path) as client:
        model = save_models(tmp_path / "models").once
        url = client.create_deployment("sum", model, config={"server.api_keys": "true"})["url"]
        assert status(url) == 401
        key = done("keys create shop --endpoint sum").strip()
        wait_until(lambda: status(url, key) == 200, what="an answer to the key")
        # The client uses the key in the server's folder.
        assert client.predict("sum", [[1, 2]])["predictions"] == [{"y": 3.0}]
        assert "sum" in done("list")
        done("keys revoke shop")
        wait_until(lambda: status(url, key) == 401, what="the refusal of the key")
        log = next(tmp_path.rglob("server.log")).read_text()
    assert key not in log
    assert "Traceback" not in log
