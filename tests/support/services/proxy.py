"""A server in front of another server. It counts the requests, and can hang, refuse,
send garbage, or change the answers.
"""

import http.client
import math
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_HOP = ("transfer-encoding", "connection", "keep-alive", "content-length", "date", "server")


@dataclass
class Proxy:
    """A rule for requests whose path contains `where`.

    Attributes:
        mood: "honest" forwards requests; "hang" reads and never responds; "refuse"
            closes the connection; any other text is the response, with `status`.
        asked: the method and path of each request, in order of arrival.
        credentials: the header Authorization of each request that has it.
        most: the number of requests that are answered; the connections of later
            requests are closed.
        rewrite: changes the body of each forwarded answer.
    """

    host: str
    port: int
    mood: str = "honest"
    where: str = ""
    status: int = 200
    url: str = ""
    asked: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)
    most: float = math.inf
    ended: threading.Event = field(default_factory=threading.Event)
    rewrite: Callable[[bytes], bytes] = bytes

    def turn(self, mood, where="", status=200):
        self.where = where
        self.status = status
        self.mood = mood


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def _answer(self):
        proxy = self.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy.asked.append(f"{self.command} {self.path}")
        proxy.credentials += self.headers.get_all("Authorization") or []
        mood = proxy.mood if proxy.where in self.path else "honest"
        mood = mood if len(proxy.asked) <= proxy.most else "refuse"
        if mood == "hang":
            until = time.monotonic() + 300
            while proxy.mood == "hang" and time.monotonic() < until and not proxy.ended.wait(0.05):
                pass
        if mood in ("hang", "refuse"):
            self.close_connection = True
            return
        if mood != "honest":
            self._send(proxy.status, [("Content-Type", "application/json")], mood.encode())
            return
        connection = http.client.HTTPConnection(proxy.host, proxy.port, timeout=120)
        try:
            headers = {
                name: value for name, value in self.headers.items() if name.lower() != "host"
            }
            connection.request(
                self.command, self.path, body, {**headers, "Host": f"{proxy.host}:{proxy.port}"}
            )
            answer = connection.getresponse()
            answer_headers = [
                (name, value) for name, value in answer.getheaders() if name.lower() not in _HOP
            ]
            self._send(answer.status, answer_headers, proxy.rewrite(answer.read()))
        except OSError:
            # If the server behind the proxy is down, a client sees the same error here.
            self.close_connection = True
        finally:
            connection.close()

    def _send(self, status, headers, body):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_HEAD = _answer  # noqa: N815

    def log_message(self, format, *args):
        pass


@contextmanager
def proxy_to(host, port):
    """Yield a proxy on a free port."""
    proxy = Proxy(host, port)
    handler = type("Handler", (_Handler,), {"proxy": proxy})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()
