"""The examples of docs/extend.md, run without changes except for the model."""

import re
import runpy
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import cast

import psutil
import pytest
import requests
from werkzeug.test import Client as WsgiClient

from mlflow_deploy_plugin import wsgi_app
from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.statedir.files import METRICS
from mlflow_deploy_plugin.serve.client.client import Client
from mlflow_deploy_plugin.serve.embed import local_server
from mlflow_deploy_plugin.serve.http.embedded import WsgiApp
from tests.support.models import mixed_model
from tests.support.refusals import refused
from tests.support.waiting import free_port, is_gone, wait_until

pytestmark = pytest.mark.usefixtures("new_home")

PAGE = (Path(__file__).parents[2] / "docs" / "extend.md").read_text()
RECORD = {"carrier": "UA", "distance": 1400.0, "hour": 17, "late": True}


def write_example(framework, folder):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    (code,) = (
        block for block in blocks if block.startswith(f"from {framework}") and "sgi_app" in block
    )
    model = mixed_model(folder / "model")
    file = folder / "application.py"
    file.write_text(code.replace("models:/flight-delay@champion", str(model)))
    return file


def test_fastapi_serves_a_model(tmp_path):
    pytest.importorskip("a2wsgi")
    write_example("a2wsgi", tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as process:
        try:
            client = Client(f"http://127.0.0.1:{port}/flights")
            wait_until(client.ready, 60, "the application")
            assert client.predict([RECORD]).values == ["yes"]
            assert client.infer({name: [value] for name, value in RECORD.items()}).model == "model"
            index = requests.get(f"http://127.0.0.1:{port}/", timeout=10).json()
            assert index == {"predictions": "/flights/invocations"}
            (agent,) = psutil.Process(process.pid).children()
        finally:
            process.send_signal(signal.SIGTERM)
    wait_until(lambda: is_gone(agent.pid), what="the agent has ended")
    assert not list((tmp_path / "home").rglob(METRICS))


ENDS_SLOWLY = """
import os, signal, sys, time, psutil
from mlflow_deploy_plugin import wsgi_app
application = wsgi_app(sys.argv[1])
(agent,) = psutil.Process().children()
print(agent.pid, flush=True)
agent.send_signal(signal.SIGTERM)  \
# the kernel's, which comes with the end of the thread that has started the agent
time.sleep(0.5)
os._exit(0)  # as by a signal: no atexit function runs
"""


@pytest.mark.long
def test_slow_end_leaves_no_metrics(tmp_path):
    model = mixed_model(tmp_path / "model")
    done = subprocess.run(
        [sys.executable, "-c", ENDS_SLOWLY, str(model)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    agent = int(done.stdout)
    wait_until(lambda: not psutil.pid_exists(agent), what="the agent has ended")
    assert not list((tmp_path / "home").rglob(METRICS))


@pytest.mark.long
def test_flask_serves_a_model(tmp_path):
    pytest.importorskip("flask")
    application = runpy.run_path(str(write_example("flask", tmp_path)))["app"].wsgi_app
    check(application)


def check(application):
    client = WsgiClient(application)
    # Otherwise it would live as long as this process.
    with closing(cast(WsgiApp, application.mounts["/flights"])):
        answer = client.post("/flights/invocations", json={"dataframe_records": [RECORD]})
        assert answer.get_json() == {"predictions": ["yes"]}
        assert client.get("/").get_json() == {"predictions": "/flights/invocations"}


@pytest.mark.long
def test_django_serves_a_model(tmp_path, monkeypatch):
    pytest.importorskip("django")
    from django.conf import settings
    from django.http import JsonResponse
    from django.urls import path

    urls = ModuleType("application_urls")
    urls.__dict__["urlpatterns"] = [
        path("", lambda request: JsonResponse({"predictions": "/flights/invocations"}))
    ]
    monkeypatch.setitem(sys.modules, urls.__name__, urls)
    settings.configure(ROOT_URLCONF=urls.__name__, ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
    check(runpy.run_path(str(write_example("django", tmp_path)))["application"])


@pytest.mark.parametrize("config", [{"server.thread": 4}, {"server.threads": "many"}])
def test_invalid_config_stops_the_start(config):
    with pytest.raises(InvalidConfig, match=r"server\.threads"):
        wsgi_app("models:/m/1", config=config)


def test_local_server_has_no_agent(tmp_path):
    before = psutil.Process().children()
    with local_server(mixed_model(tmp_path / "model"), "Flight Delay", "3") as url:
        assert psutil.Process().children() == before
        assert requests.get(f"{url}/docs", timeout=30).status_code == 200
        answer = Client(url).infer({name: [value] for name, value in RECORD.items()})
        assert (answer.model, answer.version) == ("Flight Delay", "3")
        with (
            refused(InvalidConfig, url.rpartition(":")[2]),
            local_server(tmp_path, "m", "1", url[17:]),
        ):
            pass
    with pytest.raises(requests.ConnectionError):
        requests.get(url, timeout=30)
