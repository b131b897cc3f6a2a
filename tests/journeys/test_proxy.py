"""Tests of an MLflow server behind nginx, which logs callers in with a password and
passes their names in a header.
"""

import getpass
import shutil
import signal
import subprocess
from dataclasses import dataclass

import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.services.mlflow_server import MlflowServer
from tests.support.waiting import free_port, wait_until

NGINX = shutil.which("nginx")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None, reason="no nginx on this machine (apt-get install nginx)"),
]
CONFIG = """
user {owner}; daemon off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
  access_log off;
  map $remote_user $groups {{ carol "risk"; admin "admins"; default ""; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      auth_basic mlflow; auth_basic_user_file {folder}/users;
      proxy_pass {mlflow};
      proxy_set_header Host $host:{port};
      proxy_set_header X-Forwarded-User $remote_user;
      proxy_set_header X-Forwarded-Groups $groups;
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""
USERS = ("alice", "carol", "admin")


@dataclass
class Behind:
    """The server, the address of nginx in front of it, and the store."""

    server: MlflowServer
    url: str
    store: Store


@pytest.fixture(scope="module")
def behind(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = {
        "ONNXSERVE_USER_HEADER": "X-Forwarded-User",
        "ONNXSERVE_GROUPS_HEADER": "X-Forwarded-Groups",
        "ONNXSERVE_TRUSTED_PROXIES": "127.0.0.1",
        "ONNXSERVE_ADMIN_GROUPS": "admins",
        "MLFLOW_SERVER_ALLOWED_HOSTS": "127.0.0.1:*",
    }
    server = MlflowServer(folder, app="onnxserve", variables=settings)
    (folder / "users").write_text(
        "".join(f"{user}:{{PLAIN}}password-of-{user}\n" for user in USERS)
    )
    (folder / "nginx.conf").write_text(
        CONFIG.format(folder=folder, owner=getpass.getuser(), port=port, mlflow=server.url)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.delenv("MLFLOW_TRACKING_URI")
        server.start()
        nginx = subprocess.Popen([NGINX or "", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
        try:
            wait_until((folder / "nginx.pid").exists, 30, "nginx runs")
            store = open_store(f"sqlite:///{folder / 'home' / 'onnxserve.db'}")
            log_in(patch, "alice")
            client = MlflowClient(url)
            client.create_registered_model(
                "X", tags={"onnxserve.gate.policy": "gated_aliases: [champion]"}
            )
            client.create_model_version("X", "s3://bucket/x")
            yield Behind(server, url, store)
            store.close()
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait()
            server.kill()


def log_in(patch, user):
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", f"password-of-{user}")


def browser(user):
    session = requests.Session()
    session.auth = (user, f"password-of-{user}")
    return session


def test_request_around_proxy_is_refused(behind):
    for headers in ({}, {"X-Forwarded-For": "10.0.0.1"}, {"Authorization": "Bearer forged"}):
        answer = requests.get(f"{behind.server.url}/onnxserve", headers=headers, timeout=60)
        assert answer.status_code == 401
        assert answer.json()["error_code"] == "UNAUTHENTICATED"
    assert requests.get(f"{behind.server.url}/health", timeout=60).ok


def test_forged_header_is_replaced(behind):
    forged = {
        "X-Forwarded-User": "admin",
        "X-Forwarded-Groups": "admins",
        "X-Forwarded-For": "10.0.0.1",
    }
    page = browser("alice").get(f"{behind.url}/onnxserve", headers=forged, timeout=60).text
    assert '<span class="muted">alice</span>' in page


def test_only_administrators_see_key_events(behind):
    behind.store.record("key.create", actor="root", detail={"name": "shop"})
    url = f"{behind.url}/onnxserve/history.jsonl"
    of_alice, of_admin = (browser(user).get(url, timeout=60).text for user in ("alice", "admin"))
    assert "key.create" not in of_alice
    assert "key.create" in of_admin
