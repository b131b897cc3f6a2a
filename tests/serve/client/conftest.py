"""A model that is mounted below a prefix of a server in this process, and a server with
prepared responses.
"""

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import WSGIRequestHandler, make_server

from mlflow_deploy_plugin import wsgi_app
from tests.support.models import mixed_model, tensor_model


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_):
        pass


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Return the URL of a model with columns ("flights": label and probabilities) and
    of a tensor model ("images").
    """
    folder = tmp_path_factory.mktemp("client")
    folders = {"flights": mixed_model(folder / "mixed"), "images": tensor_model(folder / "tensor")}
    with ExitStack() as ending:
        mounted: dict[str, Any] = {}
        for name, model in folders.items():
            app = mounted[f"/{name}"] = wsgi_app(
                str(model), name=name, state_dir=folder / f"state-{name}"
            )
            ending.callback(app.close)
        server = make_server(
            "127.0.0.1",
            0,
            DispatcherMiddleware(NotFound(), mounted),
            threaded=True,
            request_handler=_Quiet,
        )
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        ending.callback(thread.join)
        ending.callback(server.shutdown)
        yield lambda name: f"http://127.0.0.1:{server.port}/{name}"


@dataclass
class Scripted:
    """A server with prepared responses: status, headers, body, and the seconds before
    the response.

    Attributes:
        asked: the path, headers and body of each request.
    """

    url: str
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)


Answer = tuple[int, dict[str, str], bytes, float]


@pytest.fixture
def scripted(tmp_path):
    """Start a server that sends these responses in turn, and then repeats the last
    response.
    """
    with ExitStack() as ending:

        def start(*answers):
            return ending.enter_context(_scripted_server(list(answers)))

        yield start


@contextmanager
def _scripted_server(answers):
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append((self.path, dict(self.headers.items()), body))
            status, headers, content, seconds = answers.pop(0) if len(answers) > 1 else answers[0]
            ended.wait(seconds)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815 - http.server's name

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    script = Scripted(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield script
    finally:
        ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
