"""A store with a clock of its own, and a web server that takes alerts."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.store import Store, open_store


@dataclass
class Clock:
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def pass_by(self, **length: float) -> None:
        self.now += timedelta(**length)


@dataclass
class Receiver:
    """Takes what Apprise posts, by the path that it is posted to; while it is broken, nothing."""

    port: int = 0
    is_broken: bool = False
    got: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def url(self, path: str) -> str:
        return f"json://bot:s3cret-token@127.0.0.1:{self.port}/{path}"

    def titles(self, path: str) -> list[str]:
        return [message["title"] for message in self.got.get(f"/{path}", [])]


@pytest.fixture(scope="session")
def server() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not receiver.is_broken:
                receiver.got.setdefault(self.path.rstrip("/"), []).append(body)
            self.send_response(500 if receiver.is_broken else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        receiver.port = listener.server_port
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield receiver
        listener.shutdown()
        thread.join()


@pytest.fixture
def receiver(server: Receiver) -> Receiver:
    server.is_broken = False
    server.got.clear()
    return server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = open_store(f"sqlite:///{tmp_path / 'store.db'}", clock)
    yield opened
    opened.close()


@pytest.fixture
def settings(tmp_path: Path, receiver: Receiver) -> Settings:
    """Everybody is told at /ops; those with the tag `science` at /science."""
    file = tmp_path / "alerts.yaml"
    file.write_text(
        f"urls:\n  - {receiver.url('ops')}:\n    - tag: ops\n  - {receiver.url('science')}:\n    - tag: science\n"
    )
    return Settings(home=tmp_path, alert_config=file)
