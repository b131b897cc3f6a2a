"""A web server that receives alerts."""

import json
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Receiver:
    """A receiver of Apprise's requests, by their path. While it is broken, it responds
    with status 500.

    Attributes:
        answer_bytes: the size of the body of its responses.
    """

    port: int = 0
    is_broken: bool = False
    answer_bytes: int = 0
    got: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def url(self, path):
        """The URL of the channel, with a secret."""
        return f"json://bot:s3cret-token@127.0.0.1:{self.port}/{path}"

    def titles(self, path):
        return [message["title"] for message in self.got.get(f"/{path}", [])]


@contextmanager
def receiver():
    state = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not state.is_broken:
                state.got.setdefault(self.path.rstrip("/"), []).append(body)
            self.send_response(500 if state.is_broken else 200)
            self.send_header("Content-Length", str(state.answer_bytes))
            self.end_headers()
            with suppress(OSError):  # The client may have closed the connection.
                self.wfile.write(bytes(state.answer_bytes))

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        state.port = listener.server_port
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield state
        finally:
            listener.shutdown()
            thread.join()
