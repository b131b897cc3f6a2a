"""The proxy of `benchmarks/promotion.py` counts requests and disturbs connections; late agents are found."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from benchmarks.promoting.agents import Agents, Arrival
from benchmarks.promoting.proxy import Proxy


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        with Proxy(server.server_port).running() as proxy:
            yield proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def test_each_request_of_a_connection_is_counted(proxy: Proxy, session: requests.Session) -> None:
    for path in ("/a?x=1", "/a?x=2", "/b"):
        assert session.get(f"http://127.0.0.1:{proxy.port}{path}", timeout=10).text == "ok"

    assert proxy.requests == {"/a": 2, "/b": 1}
    assert proxy.cut() == 1


def test_a_connection_of_a_hanging_proxy_stays_silent_and_a_later_connection_is_forwarded(
    proxy: Proxy, session: requests.Session
) -> None:
    url = f"http://127.0.0.1:{proxy.port}/a"
    session.get(url, timeout=10)

    proxy.hang()
    with pytest.raises(requests.ReadTimeout):
        session.get(url, timeout=0.2)
    with pytest.raises(requests.ReadTimeout):
        requests.get(url, timeout=0.2)
    proxy.recover()

    assert requests.get(url, timeout=10).text == "ok"
    assert proxy.requests == {"/a": 2}


def test_a_slow_proxy_delays_requests_and_answers(proxy: Proxy) -> None:
    proxy.delay_seconds = 0.1
    begun = time.monotonic()

    assert requests.get(f"http://127.0.0.1:{proxy.port}/a", timeout=10).text == "ok"
    assert time.monotonic() - begun >= 0.2


def test_agents_that_lack_the_version_of_their_model_are_found() -> None:
    agents = Agents(["x", "x", "y"], servers=0)
    agents.take(Arrival(0, "x", "1", 0.0))
    agents.take(Arrival(1, "x", "2", 0.0))

    assert agents.wait_for({"x": "2", "y": "1"}, 0) == [0, 2]
