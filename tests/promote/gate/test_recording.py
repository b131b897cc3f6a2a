"""Tests of the client that sends verdicts to MLflow's server: it writes the tags if the
server does not run the app.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.promote.gate.recording import PATH, VerdictRecord, write_verdict
from tests.support.tracking import tracking_at


def test_verdict_is_tagged_if_a_proxy_refuses_the_path(tmp_path, monkeypatch):
    set_tags: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, json.dumps({"model_version": {"name": "credit", "version": "1"}}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.startswith(PATH):
                self.answer(403, "<html>forbidden</html>", "text/html")
                return
            set_tags[body["key"]] = body["value"]
            self.answer(200, "{}")

        def answer(self, status: int, body: str, kind: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = VerdictRecord(
        model="credit", version="1", state="passed", reason="all checks passed", files="ab12"
    )
    store = open_store(f"sqlite:///{tmp_path}/store.db")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with tracking_at(f"http://127.0.0.1:{server.server_port}"):
            write_verdict(record, store)
        server.shutdown()
    assert set_tags["onnxserve.gate"] == "passed"
    assert set_tags["onnxserve.gate.digest"] == "ab12"
    assert [event.after for event in store.events(model="credit")] == ["passed"]
    store.close()
