"""Tests of an MLflow server behind nginx, which logs callers in with a password and
passes their names in a header.
"""

import getpass
import shutil
import signal
import socket
import subprocess
from dataclasses import dataclass

import pytest
import requests

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
  server {{
    listen 127.0.0.1:{port};
    location / {{
      auth_basic mlflow; auth_basic_user_file {folder}/users;
      proxy_pass {mlflow};
      proxy_set_header Host $host:{port};
      proxy_set_header X-Forwarded-User $remote_user;
      proxy_set_header X-Forwarded-Groups "";
      proxy_set_header X-Forwarded-For $remote_addr;
    }}
  }}
}}
"""


@dataclass
class Behind:
    """The server, and the address of nginx in front of it."""

    server: MlflowServer
    url: str


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
    (folder / "users").write_text("alice:{PLAIN}secret\n")
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
            yield Behind(server, url)
        finally:
            nginx.send_signal(signal.SIGTERM)
            nginx.wait()
            server.kill()


def test_forged_header_is_replaced(behind):
    forged = {
        "X-Forwarded-User": "admin",
        "X-Forwarded-Groups": "admins",
        "X-Forwarded-For": "10.0.0.1",
    }
    url = f"{behind.url}/onnxserve"
    page = requests.get(url, headers=forged, auth=("alice", "secret"), timeout=60).text
    assert '<span class="muted">alice</span>' in page


@pytest.mark.parametrize(
    "path", ["/api/2.0/mlflow/experiments/search", "/onnxserve/verdicts", "/v1/traces"]
)
def test_server_answers_an_unfinished_body_before_the_key(behind, path):
    address = behind.server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), 30) as stranger:
        stranger.sendall(f"POST {path} HTTP/1.1\r\nHost: {behind.server.url[7:]}\r\n".encode())
        stranger.sendall(b"Content-Length: 1000000\r\n\r\n" + b"x" * 10_000)
        assert stranger.recv(65536).startswith(b"HTTP/1.1 401")
