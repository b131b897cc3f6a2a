"""The upgrade of running servers from an earlier wheel, by docs/operate.md."""

import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager

import pytest
import requests

from mlflow_deploy_plugin.core.statedir.metric_files import remove_metrics
from tests.support.guides import ROOT
from tests.support.moves import JudgedModel
from tests.support.refusals import mentions
from tests.support.servers import single_model
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.nginx import nginx_of_the_guide
from tests.support.serving import Served
from tests.support.waiting import free_port

FIRST_SCHEMA = "4dff77c38"
"""The old version until there is a tag."""
BODY = {"inputs": [{"a": 1.0, "b": 2.0, "c": 3.0}]}
pytestmark = pytest.mark.long


def git(*arguments):
    ran = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, check=False)
    return ran.stdout if ran.returncode == 0 else b""


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Return the Python of an environment with the wheel of the old version, and of one
    with the wheel of this checkout. The other packages are those of this environment.
    """
    tag = git("describe", "--tags", "--abbrev=0", "--match", "v*", "HEAD^").decode().strip()
    folder = tmp_path_factory.mktemp("wheels")
    pythons = []
    for name, commit in (("old", tag or FIRST_SCHEMA), ("new", "HEAD")):
        archive = git("archive", commit)
        if not archive:
            pytest.skip(f"this clone does not contain {commit}")
        source = folder / name / "source"
        source.mkdir(parents=True)
        subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
        environment = folder / name / "environment"
        pip = [sys.executable, "-m", "pip"]
        build = [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", source.parent]
        subprocess.run([*build, source], check=True, capture_output=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        (packages,) = environment.glob("lib/*/site-packages")
        (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
        python = environment / "bin" / "python"
        install = [*pip, "--python", python, "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*install, *source.parent.glob("*.whl")], check=True, capture_output=True)
        pythons.append(python)
    return pythons


@pytest.fixture
def outside(tmp_path, new_home, monkeypatch):
    """Set a folder and variables with which processes do not import this checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")


def start(python, folder, port):
    """Start a server of the model with the environment of this Python."""
    state = folder / str(port)
    log = folder / f"{port}-{python.parts[-4]}.log"
    command = [python.with_name("onnxserve"), "serve", folder / "model", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--state-dir", state],
            stdout=output, stderr=output, start_new_session=True, cwd=folder,
        )  # fmt: skip
    return Served(process, state, log)


class Caller(threading.Thread):
    """A caller that sends one request after the other to `url`.

    Attributes:
        statuses: the statuses of the answers; 0 without an answer.
    """

    def __init__(self, url):
        super().__init__(daemon=True)
        self._url = url
        self.statuses = []
        self.stopped = threading.Event()

    def run(self):
        while not self.stopped.is_set():
            try:
                answer = requests.post(f"{self._url}/invocations", json=BODY, timeout=30)
                self.statuses.append(answer.status_code)
            except requests.RequestException:
                self.statuses.append(0)
            time.sleep(0.005)


@contextmanager
def calling(url, count=3):
    """Send requests until the end of the block, and yield the callers."""
    callers = [Caller(url) for _ in range(count)]
    for caller in callers:
        caller.start()
    try:
        yield callers
    finally:
        for caller in callers:
            caller.stopped.set()
        for caller in callers:
            caller.join()


def test_upgrade_behind_nginx_answers_every_request(environments, outside, tmp_path):
    old, new = environments
    single_model(tmp_path / "model")
    ports = [free_port(), free_port()]
    with ExitStack() as stack:
        servers = [start(old, tmp_path, port) for port in ports]
        for server in servers:
            stack.callback(remove_metrics, server.state_dir)
            stack.callback(server.end)
        for server in servers:
            server.wait_ready()
        addresses = [f"127.0.0.1:{port}" for port in ports]
        url = stack.enter_context(nginx_of_the_guide(tmp_path, "servers", addresses, "/ping"))
        with calling(url) as callers:
            for server, port in zip(servers, ports, strict=True):
                time.sleep(1)
                assert server.end() == 0
                upgraded = start(new, tmp_path, port)
                stack.callback(upgraded.end)
                upgraded.wait_ready()
                time.sleep(1)
    statuses = [status for caller in callers for status in caller.statuses]
    assert set(statuses) == {200}


def test_upgrade_of_mlflow_keeps_the_trail(
    environments, outside, new_database, tmp_path, monkeypatch
):
    """The old server, whose store has the same schema, is still running when the new
    one starts.
    """
    new_database(tmp_path)
    variables = {
        "ONNXSERVE_HOME": str(tmp_path / "home"),
        "ONNXSERVE_AUDIT_KEY_FILE": str(tmp_path / "key" / "audit.pem"),
        "PYTHONPATH": "",
    }
    old, new = (
        JudgedModel(
            MlflowServer(tmp_path, app="onnxserve", variables=variables, python=str(python))
        )
        for python in environments
    )
    with ExitStack() as stack:
        stack.callback(old.server.kill)
        stack.callback(new.server.kill)
        old.server.start()
        old.register()
        old.attempt_moves("@champion", 2, made := [])
        new.server.start()
        old.attempt_moves("@champion", 2, made)
        old.server.kill()
        new.attempt_moves("@champion", 2, made)
        answered = Counter((attempt.place, attempt.version) for attempt in made)
        assert [attempt.status for attempt in made] == [200] * 6
        assert new.recorded() == answered
        assert mentions(new.run("audit", "history", "--verify").stdout, "intact")
