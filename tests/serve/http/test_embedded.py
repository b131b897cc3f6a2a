"""A mounted model answers like the server, follows the registry, and leaves no files or
processes behind.
"""

import gc
import gzip
import io
import os
import signal
import subprocess
import sys
from contextlib import closing
from urllib.parse import unquote

import psutil
import pytest
import requests
from mlflow import MlflowClient
from werkzeug.test import EnvironBuilder, run_wsgi_app

from mlflow_deploy_plugin import wsgi_app
from mlflow_deploy_plugin.core.errors import DeploymentFailed
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.statedir.files import METRICS
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
    "compressed": (
        "POST",
        "/endpoints/flights/invocations",
        {**JSON, "Content-Encoding": "gzip"},
        gzip.compress(RECORD, mtime=0),
    ),
    "answered as lines": ("POST", "/invocations", {**JSON, "Accept": "application/jsonl"}, RECORD),
    "V2": ("POST", "/v2/models/flights/infer", JSON, V2),
    "V2's metadata": ("GET", "/v2/models/flights", {}, b""),
    "a HEAD": ("HEAD", "/health", {}, b""),
    "broken JSON": ("POST", "/invocations", JSON, b"{"),
    "too large": ("POST", "/invocations", JSON, b" " * 3000),
    "what it takes": ("OPTIONS", "/feedback", {}, b""),
    "another endpoint": ("GET", "/v2/models/ü%2F", {}, b""),
    "no route": ("GET", "/invocation", {}, b""),
}
PAGES = ("/", "/pages/page.css", "/endpoints/flights/requests")
OF_THE_REQUEST = {"x-request-id", "x-prediction-id", "date", "server", "connection"} | {
    "content-length"
}


class OpenConnection(io.BytesIO):
    """An input as in wsgiref's server: the body has no end, so that reading on would
    wait for the client.
    """

    def read(self, size=-1, /):
        assert size is not None
        assert 0 <= size <= len(self.getbuffer()) - self.tell(), "it waits for ever"
        return super().read(size)


def ask_wsgi(app, method, path, headers, body):
    environ = EnvironBuilder(
        method=method,
        path=unquote(path),
        base_url="http://localhost/models",
        headers=headers,
        input_stream=OpenConnection(body),
        content_length=len(body),
    ).get_environ()
    content, status, fields = run_wsgi_app(app, environ, buffered=True)
    return (
        int(status[:3]),
        {name.lower(): value for name, value in fields},
        b"".join(content),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return mixed_model(tmp_path_factory.mktemp("embedded") / "mixed")


CONFIG = {"server.max_body_bytes": 2000}


@pytest.fixture(scope="module")
def mounted(folder, tmp_path_factory):
    states = tmp_path_factory.mktemp("states")
    wsgi = wsgi_app(str(folder), name="flights", config=CONFIG, state_dir=states / "wsgi")
    with closing(wsgi):
        yield wsgi


@pytest.mark.long
def test_mounted_model_answers_like_server(mounted, folder, serve):
    config = ("-C", "server.max_body_bytes=2000")
    url = serve(str(folder), "--name", "flights", *config).wait_ready().url
    for case, (method, path, headers, body) in REQUESTS.items():
        plain = {"Accept-Encoding": "identity", "User-Agent": "t", "Accept": "*/*", **headers}
        response = requests.request(method, url + path, headers=plain, data=body, timeout=30)
        expected = {name.lower(): value for name, value in response.headers.items()}
        status, fields, content = ask_wsgi(mounted, method, path, headers, body)
        assert (status, content) == (response.status_code, response.content), case
        for name in (fields.keys() | expected.keys()) - OF_THE_REQUEST:
            assert fields.get(name) == expected.get(name), (case, name)


def agents_of(state_dir):
    """Return the agents of this process for a state folder or its subfolders."""
    # Another test's child that has ended has no command line.
    children = {
        child: child.as_dict(["cmdline"])["cmdline"] or () for child in psutil.Process().children()
    }
    return [child for child, line in children.items() if str(state_dir) in " ".join(line)]


@pytest.fixture(scope="module")
def closed(folder, tmp_path_factory):
    """The folder of an application's own metrics, and the answers to requests for
    pages. The application has served three requests with the model `logged`, and has
    closed it.
    """
    counters = tmp_path_factory.mktemp("counters")
    # prometheus_client uses this file name.
    (counters / f"gauge_livesum_{os.getpid()}.db").write_bytes(b"the application's")
    state_dir = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROMETHEUS_MULTIPROC_DIR", str(counters))
        with closing(wsgi_app(str(folder), name="logged", state_dir=state_dir)) as app:
            for _ in range(3):
                assert ask_wsgi(app, *REQUESTS["predictions"])[0] == 200
            pages = [ask_wsgi(app, "GET", path, {}, b"") for path in PAGES]
    return counters, pages


def test_mounted_model_has_no_pages(closed):
    for status, _, body in closed[1]:
        assert status == 404
        assert b"an embedded model has no pages" in body


@pytest.mark.usefixtures("closed")
def test_predictions_reach_inference_log():
    tables = list(view_tables(open_log(load_settings().inference_log), View("logged"), {"carrier"}))
    assert sum(table.num_rows for table in tables) == 3


@pytest.mark.long
def test_closed_model_leaves_no_open_file(folder, tmp_path):
    with closing(wsgi_app(str(folder), state_dir=tmp_path)) as app:
        metrics = os.readlink(tmp_path / METRICS)
    del app
    gc.collect()
    opened = [file.path for file in psutil.Process().open_files()]
    assert not any(path.startswith(metrics) for path in opened)


@pytest.mark.long
def test_each_process_has_own_folder(folder, tmp_path):
    with (
        closing(wsgi_app(str(folder), state_dir=tmp_path / "state")),
        closing(wsgi_app(str(folder), state_dir=tmp_path / "state")),
    ):
        assert {path.name for path in tmp_path.iterdir()} == {"state", "state.2"}


def test_counters_of_application_are_untouched(closed):
    (mine,) = closed[0].iterdir()
    assert mine.read_bytes() == b"the application's"


def test_broken_model_fails_and_leaves_no_process(tmp_path):
    broken = mixed_model(tmp_path / "broken")
    (broken / "serving_input_example.json").write_text('{"inputs": [[1]]}')
    with pytest.raises(DeploymentFailed, match="its own example"):
        wsgi_app(str(broken), state_dir=tmp_path / "state")
    assert agents_of(tmp_path) == []


@pytest.mark.long
def test_alias_is_followed_unless_disabled(tmp_path, new_database, monkeypatch):
    monkeypatch.setenv("ONNXSERVE_POLL_SECONDS", "0.2")
    uri = "models:/flights@champion"

    def version(app):
        return ask_wsgi(app, "POST", "/invocations", JSON, RECORD)[1]["x-model-version"]

    with tracking_at(new_database(tmp_path)):
        client = MlflowClient()
        client.create_registered_model("flights")
        for number in (1, 2):
            client.create_model_version("flights", mixed_model(tmp_path / str(number)).as_uri())
        client.set_registered_model_alias("flights", "champion", "1")
        with (
            closing(wsgi_app(uri, state_dir=tmp_path / "follows")) as follows,
            closing(wsgi_app(uri, state_dir=tmp_path / "stays", follow=False)) as stays,
        ):
            assert version(follows) == version(stays) == "1"
            client.set_registered_model_alias("flights", "champion", "2")
            wait_until(lambda: version(follows) == "2", what="version 2")
            assert version(stays) == "1"


def code_of(folder, tmp_path, then):
    """Return a program that mounts the model as `app`, and then runs this code."""
    return (
        "import onnxserve, os, psutil, sys, time\n"
        f"app = onnxserve.wsgi_app({str(folder)!r}, state_dir={str(tmp_path / 's')!r})\n{then}\n"
    )


@pytest.mark.long
def test_end_of_fork_keeps_agent(folder, tmp_path):
    then = (
        "if (child := os.fork()) == 0: sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert [agent.is_running() for agent in psutil.Process().children()] == [True]"
    )
    subprocess.run([sys.executable, "-c", code_of(folder, tmp_path, then)], check=True)


@pytest.mark.long
def test_unclosed_application_ends_agent_silently(folder, tmp_path):
    code = code_of(folder, tmp_path, "print(psutil.Process().children()[0].pid)")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "atexit" not in ended.stderr
    assert not psutil.pid_exists(int(ended.stdout))


@pytest.fixture
def application(folder, tmp_path):
    """Yield a process that has mounted the model."""
    code = code_of(folder, tmp_path, "print('ready', flush=True); time.sleep(60)")
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe) as app:
        assert app.stdout is not None
        assert app.stdout.readline() == b"ready\n"
        yield app
        app.kill()


def new_agent(application, killed):
    """Wait for an agent that replaces the killed one."""
    return wait_until(
        lambda: next(
            (
                child
                for child in psutil.Process(application.pid).children()
                if child != killed and "--parent" in child.cmdline()
            ),
            None,
        ),
        what="a new agent",
    )


@pytest.mark.long
def test_killed_agent_is_replaced_until_application_ends(application):
    process = psutil.Process(application.pid)
    (killed,) = process.children()
    limits = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
    os.kill(killed.pid, signal.SIGKILL)
    lines = iter(application.stderr.readline, b"")
    assert any(b"the agent cannot be started: Too many open files" in line for line in lines)
    process.rlimit(psutil.RLIMIT_NOFILE, limits)
    agent = new_agent(application, killed)
    application.kill()
    wait_until(lambda: not agent.is_running(), what="the agent has ended")
