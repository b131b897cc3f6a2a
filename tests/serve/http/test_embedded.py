"""A mounted model answers like the server, follows the registry, and leaves no files or
processes behind.
"""

import asyncio
import gc
import gzip
import io
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import requests
from mlflow import MlflowClient

from mlflow_deploy_plugin import asgi_app, wsgi_app
from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.serve.http.embedded import AsgiApp
from mlflow_deploy_plugin.serve.http.responses import RawResponse
from mlflow_deploy_plugin.serve.inference_log.log_reader import View, open_log, view_tables
from tests.support.models import mixed_model
from tests.support.tracking import tracking_at
from tests.support.waiting import wait_until

RECORD = b'{"dataframe_records": [{"carrier": "UA", "distance": 1400.0, "hour": 17, "late": true}]}'
JSON = {"Content-Type": "application/json"}
V2 = (
    b'{"id": "1", "inputs": [{"name": "carrier", "shape": [1], "datatype": "BYTES", '
    b'"data": ["AA"]},'
    b' {"name": "distance", "shape": [1], "datatype": "FP64", "data": [1]},'
    b' {"name": "hour", "shape": [1], "datatype": "INT64", "data": [1]},'
    b' {"name": "late", "shape": [1], "datatype": "BOOL", "data": [true]}]}'
)
REQUESTS = {
    "predictions": ("POST", "/invocations", JSON, RECORD),
    "of a named endpoint": ("POST", "/endpoints/flights/invocations", JSON, RECORD),
    "compressed": (
        "POST",
        "/invocations",
        {**JSON, "Content-Encoding": "gzip"},
        gzip.compress(RECORD, mtime=0),
    ),
    "answered as lines": ("POST", "/invocations", {**JSON, "Accept": "application/jsonl"}, RECORD),
    "V2": ("POST", "/v2/models/flights/infer", JSON, V2),
    "V2's metadata": ("GET", "/v2/models/flights", {}, b""),
    "TensorFlow's status": ("GET", "/v1/models/flights", {}, b""),
    "ready": ("GET", "/ping", {}, b""),
    "a HEAD": ("HEAD", "/health", {}, b""),
    "broken JSON": ("POST", "/invocations", JSON, b"{"),
    "another type": ("POST", "/invocations", {"Content-Type": "text/html"}, RECORD),
    "a missing column": (
        "POST",
        "/v2/models/flights/infer",
        JSON,
        V2.replace(b"carrier", b"carier"),
    ),
    "too large": ("POST", "/invocations", JSON, b" " * 3000),
    "another method": ("DELETE", "/invocations", {}, b""),
    "what it takes": ("OPTIONS", "/feedback", {}, b""),
    "another endpoint": ("GET", "/v2/models/ü%2F", {}, b""),
    "no route": ("GET", "/invocation", {}, b""),
}
OF_THE_REQUEST = {"x-request-id", "x-prediction-id", "date", "server", "connection"}
Answer = tuple[int, dict[str, str], bytes]


class OpenConnection(io.BytesIO):
    """An input as in wsgiref's server: the body has no end, so that reading on would
    wait for the client.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        assert 0 <= size <= len(self.getbuffer()) - self.tell(), "it waits for ever"
        return super().read(size)


def ask_wsgi(app, method, path, headers, body):
    from urllib.parse import unquote_to_bytes

    environ = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "/models",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "CONTENT_LENGTH": str(len(body)),
        "HTTP_HOST": "localhost",
        "wsgi.input": OpenConnection(body),
        "wsgi.errors": sys.stderr,
        "wsgi.url_scheme": "http",
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        environ[key if key == "CONTENT_TYPE" else f"HTTP_{key}"] = value
    began: list[Any] = []

    def start_response(status, fields, error=None):
        began.extend((status, fields))
        return began.append

    content = b"".join(app(environ, start_response))
    return int(began[0][:3]), {name.lower(): value for name, value in began[1]}, content


def ask_asgi(app, method, path, headers, body):
    from urllib.parse import unquote

    scope = {
        "type": "http",
        "method": method,
        "root_path": "/models",
        "path": "/models" + unquote(path),
        "query_string": b"",
        "headers": [(b"host", b"localhost")]
        + [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
    }
    pieces = [body[:10], body[10:]]
    sent: list[Any] = []

    async def receive():
        if not pieces:  # The server then waits until the client closes.
            await asyncio.Event().wait()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return (
        sent[0]["status"],
        fields,
        b"" if method == "HEAD" else b"".join(message["body"] for message in sent[1:]),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("embedded") / "mixed")


CONFIG = {"server.max_body_bytes": 2000}


@pytest.fixture(scope="module")
def mounted(folder, tmp_path_factory):
    states = tmp_path_factory.mktemp("states")
    wsgi = wsgi_app(str(folder), name="flights", config=CONFIG, state_dir=states / "wsgi")
    asgi = asgi_app(str(folder), name="flights", config=CONFIG, state_dir=states / "asgi")
    with closing(wsgi), closing(asgi):
        yield {
            "wsgi": lambda *given: ask_wsgi(wsgi, *given),
            "asgi": lambda *given: ask_asgi(asgi, *given),
        }


@pytest.mark.long
def test_a_mounted_model_answers_as_the_server_does(mounted, folder, serve):
    url = (
        serve(str(folder), "--name", "flights", "-C", "server.max_body_bytes=2000").wait_ready().url
    )
    for case, (method, path, headers, body) in REQUESTS.items():
        plain = {"Accept-Encoding": "identity", "User-Agent": "t", "Accept": "*/*", **headers}
        response = requests.request(method, url + path, headers=plain, data=body, timeout=30)
        expected = {name.lower(): value for name, value in response.headers.items()}
        for kind, ask in mounted.items():
            status, fields, content = ask(method, path, headers, body)
            assert (status, content) == (response.status_code, response.content), (
                f"{case} by {kind}"
            )
            stable_fields = {
                name: value for name, value in fields.items() if name not in OF_THE_REQUEST
            }
            length = (
                {} if method == "HEAD" or status == 204 else {"content-length": str(len(content))}
            )
            wanted = {name: value for name, value in expected.items() if name not in OF_THE_REQUEST}
            assert {**stable_fields, **length} == {**wanted, **length}, f"{case} by {kind}"


def answering_in_parts(pieces):
    def handle(raw):
        return RawResponse(200, b"", "text/event-stream", pieces=pieces)

    server = SimpleNamespace(spec=SimpleNamespace(threads=1), max_body_bytes=1000)
    model: Any = SimpleNamespace(
        app=SimpleNamespace(server=server, handle=handle), close=lambda: None
    )
    return AsgiApp(model)


def test_an_answer_in_parts_is_sent_as_it_is_made():
    with closing(answering_in_parts(b"data: %d\n\n" % number for number in range(3))) as app:
        status, headers, body = ask_asgi(app, "POST", "/invocations", JSON, b"{}")
    assert status == 200
    assert body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert "content-length" not in {name.lower() for name in headers}


def test_no_further_parts_are_made_for_a_client_that_has_gone():
    """uvicorn reports a closed client only by `receive`;
    its `send` then does nothing.
    """
    made: list[int] = []

    def pieces():
        for number in range(100):
            made.append(number)
            yield b"data: %d\n\n" % number
            time.sleep(0.01)

    async def ask(app):
        messages = [{"type": "http.request", "body": b"{}"}]
        has_part = asyncio.Event()

        async def receive():
            if messages:
                return messages.pop()
            await has_part.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.body":
                has_part.set()

        await app(
            {"type": "http", "method": "POST", "path": "/invocations", "headers": []}, receive, send
        )

    with closing(answering_in_parts(pieces())) as app:
        asyncio.run(ask(app))
    assert len(made) < 100


@pytest.mark.parametrize("kind", ["wsgi", "asgi"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/docs",
        "/requests",
        "/pages/page.css",
        "/endpoints/flights",
        "/endpoints/flights/requests",
    ],
)
def test_pages_for_people_are_left_out(mounted, kind, path):
    status, _, body = mounted[kind]("GET", path, {}, b"")
    assert status == 404
    assert b"an embedded model has no pages" in body


def test_a_websocket_is_closed_and_a_lifespan_ends_the_model(folder, tmp_path):
    app = asgi_app(str(folder), state_dir=tmp_path)
    agents = [child for child in psutil.Process().children() if str(tmp_path) in child.cmdline()]
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive():
        return events.pop(0)

    async def send(message):
        sent.append(message["type"])

    asyncio.run(app({"type": "websocket"}, receive, send))
    asyncio.run(app({"type": "lifespan"}, receive, send))

    assert sent == ["websocket.close", "lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(agents) == 1
    assert not any(child.is_running() for child in agents)


def test_predictions_of_a_mounted_model_reach_the_inference_log(folder, tmp_path):
    with closing(wsgi_app(str(folder), name="logged", state_dir=tmp_path)) as app:
        for _ in range(3):
            assert ask_wsgi(app, "POST", "/invocations", JSON, RECORD)[0] == 200

    tables = list(view_tables(open_log(load_settings().inference_log), View("logged"), {"carrier"}))
    assert sum(table.num_rows for table in tables) == 3


@pytest.mark.long
def test_a_closed_model_leaves_no_file_open(folder, tmp_path):
    with closing(wsgi_app(str(folder), state_dir=tmp_path)) as app:
        metrics = os.readlink(tmp_path / METRICS)
    del app
    gc.collect()
    command = ["ls", "-l", f"/proc/{os.getpid()}/fd"]
    assert (
        metrics not in subprocess.run(command, capture_output=True, text=True, check=False).stdout
    )


@pytest.mark.long
def test_two_processes_of_one_application_have_folders_of_their_own(folder, tmp_path):
    with (
        closing(wsgi_app(str(folder), state_dir=tmp_path / "state")),
        closing(wsgi_app(str(folder), state_dir=tmp_path / "state")),
    ):
        assert {path.name for path in tmp_path.iterdir()} == {"state", "state.2"}


def test_the_counters_of_the_application_stay_as_they_are(folder, tmp_path, monkeypatch):
    counters = tmp_path / "counters"
    counters.mkdir()
    mine = counters / f"gauge_livesum_{os.getpid()}.db"  # prometheus_client uses this file name.
    mine.write_bytes(b"the application's")
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(counters))
    with closing(wsgi_app(str(folder), name="flights", state_dir=tmp_path / "state")) as app:
        assert ask_wsgi(app, *REQUESTS["predictions"])[0] == 200
        assert {path.name: path.read_bytes() for path in counters.iterdir()} == {
            mine.name: b"the application's"
        }
    assert mine.is_file()


@pytest.mark.long
def test_a_missing_model_fails_at_the_start_and_leaves_no_process(tmp_path):
    before = len(psutil.Process().children())
    with pytest.raises(DeploymentFailed, match="nowhere"):
        asgi_app(str(tmp_path / "nowhere"), state_dir=tmp_path / "state")
    assert len(psutil.Process().children()) == before
    # The folder is free again.
    with closing(wsgi_app(str(mixed_model(tmp_path / "m")), state_dir=tmp_path / "state")):
        pass


def test_a_model_that_cannot_be_loaded_fails_at_the_start(tmp_path):
    broken = mixed_model(tmp_path / "broken")
    (broken / "serving_input_example.json").write_text('{"inputs": [[1]]}')
    with pytest.raises(DeploymentFailed, match="its own example"):
        wsgi_app(str(broken), state_dir=tmp_path / "state")


@pytest.mark.long
def test_an_alias_is_followed_unless_the_application_says_otherwise(
    tmp_path, new_database, monkeypatch
):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    uri = new_database(tmp_path)
    with tracking_at(uri):
        client = MlflowClient()
        client.create_registered_model("flights")
        for number in (1, 2):
            client.create_model_version("flights", mixed_model(tmp_path / str(number)).as_uri())
        client.set_registered_model_alias("flights", "champion", "1")
        with (
            closing(
                wsgi_app("models:/flights@champion", state_dir=tmp_path / "follows")
            ) as follows,
            closing(
                wsgi_app("models:/flights@champion", state_dir=tmp_path / "stays", follow=False)
            ) as stays,
        ):

            def version(app):
                return ask_wsgi(app, "POST", "/invocations", JSON, RECORD)[1]["x-model-version"]

            assert version(follows) == "1"
            assert version(stays) == "1"
            client.set_registered_model_alias("flights", "champion", "2")
            wait_until(lambda: version(follows) == "2", what="version 2")
            assert version(stays) == "1"


@pytest.mark.long
def test_the_end_of_a_fork_leaves_the_model_to_its_parent(folder, tmp_path):
    code = (
        "import mlflow_deploy_plugin as onnxserve, os, psutil, sys\n"
        f"app = onnxserve.wsgi_app({str(folder)!r}, state_dir={str(tmp_path / 's')!r})\n"
        "if (child := os.fork()) == 0: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert [agent.is_running() for agent in psutil.Process().children()] == [True]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.long
def test_an_application_that_ends_without_closing_it_ends_the_agent_and_says_nothing(
    folder, tmp_path
):
    code = (
        "import mlflow_deploy_plugin as onnxserve, psutil\n"
        f"app = onnxserve.wsgi_app({str(folder)!r}, state_dir={str(tmp_path / 's')!r})\n"
        "print(psutil.Process().children()[0].pid)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "atexit" not in ended.stderr
    assert not psutil.pid_exists(int(ended.stdout))


@pytest.mark.long
def test_an_agent_that_is_killed_is_replaced_and_one_whose_application_is_killed_ends(
    folder, tmp_path
):
    mount = f"app = onnxserve.wsgi_app({str(folder)!r}, state_dir={str(tmp_path / 's')!r})"
    code = (
        f"import mlflow_deploy_plugin as onnxserve, time; {mount}; print('ready', flush=True); "
        "time.sleep(60)"
    )

    def agents():
        return psutil.Process(app.pid).children()

    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == b"ready\n"
        (killed,) = agents()
        os.kill(killed.pid, signal.SIGKILL)
        wait_until(
            lambda: any("--parent" in child.cmdline() for child in agents() if child != killed),
            what="a new agent",
        )
        (agent,) = agents()
        app.kill()
    wait_until(lambda: not agent.is_running(), what="the agent has ended")


@pytest.mark.long
def test_an_agent_that_cannot_be_started_for_want_of_files_is_started_later(folder, tmp_path):
    mount = f"app = onnxserve.wsgi_app({str(folder)!r}, state_dir={str(tmp_path / 's')!r})"
    code = (
        f"import mlflow_deploy_plugin as onnxserve, time; {mount}; print('ready', flush=True); "
        "time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as app:
        assert app.stdout is not None
        assert app.stderr is not None
        assert app.stdout.readline() == b"ready\n"
        process = psutil.Process(app.pid)
        (killed,) = process.children()
        limits = process.rlimit(psutil.RLIMIT_NOFILE)
        process.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        os.kill(killed.pid, signal.SIGKILL)
        lines = iter(app.stderr.readline, b"")
        assert any(b"the agent cannot be started: Too many open files" in line for line in lines)
        process.rlimit(psutil.RLIMIT_NOFILE, limits)
        wait_until(
            lambda: [child for child in process.children() if child != killed], what="a new agent"
        )
        app.kill()
