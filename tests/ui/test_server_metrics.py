"""What the console learns from a server's own page of metrics."""

import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mlflow_deploy_plugin.ui.server_metrics import VariantMetrics, scrape_servers

PAGE = b"""# TYPE onnxserve_requests_total counter
onnxserve_requests_total{endpoint="e",variant="v",model="m",version="3",status="200"} 7
onnxserve_requests_total{endpoint="e",variant="v",model="m",version="3",status="503"} 2
"""


class _Metrics(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate names another host and is signed by nobody else, as one behind a public name is."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=models.example"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True)
    server = HTTPServer(("127.0.0.1", 0), _Metrics)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_speaks_tls_is_asked_too(tls_server: str) -> None:
    live = scrape_servers({"e": tls_server})["e"]

    assert live.error == ""
    assert live.of("v", "m", "3") == VariantMetrics(requests=9, failures=2)


def test_a_server_that_is_away_says_so() -> None:
    assert scrape_servers({"e": "http://127.0.0.1:9"})["e"].error == "nothing answers there"
