"""The distribution of docs/extend.md is installed, and a broken one is named."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from mlflow_deploy_plugin import export
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from tests.support.commands import done, onnxserve, said
from tests.support.guides import blocks
from tests.support.models import mixed_model
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until

PAGE = Path("docs/extend.md").read_text()
MODULES = dict(re.findall(r"^`(\w+)\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
BROKEN = """
[onnxserve.commands]
absent = no_such_module:command
number = flights_report:__name__
serve = flights_report:report
[onnxserve.exporters]
absent = no_such_module:write
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the page's distribution into a folder."""
    folder = tmp_path_factory.mktemp("flights")
    for name, code in MODULES.items():
        (folder / f"{name}.py").write_text(code)
    (folder / "pyproject.toml").write_text(blocks("toml", PAGE)[0])
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", folder / "site", folder], check=True)
    return folder / "site"


@pytest.fixture
def example(site, tmp_path, monkeypatch):
    """Add the distribution to the path, and one that cannot be used."""
    metadata = tmp_path / "broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("example")
def test_command_of_another_distribution_runs():
    assert mentions(said(onnxserve("report no-such-endpoint")), "no-such-endpoint")
    assert mentions(onnxserve("repor").stderr, "onnxserve report")
    assert mentions(done("--help"), "Print the deployments", "no_such_module")
    assert not mentions(done("serve --help"), "Print the deployments")


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize(
    ("command", "place"), [("absent", "no_such_module"), ("number", "flights_report:__name__")]
)
def test_broken_command_is_named(command, place):
    assert mentions(said(onnxserve(command)), command, place)


@pytest.mark.usefixtures("example")
def test_format_of_another_distribution_is_written(tmp_path):
    model = mixed_model(tmp_path / "flight-delay")
    graph = export(str(model), "text", tmp_path / "graph.txt")
    assert graph.max_error == 0
    assert mentions(graph.path.read_text(), "ir_version")
    with refused(OnnxserveError, "absent", "no_such_module"):
        export(str(model), "absent", tmp_path / "other")
    with refused(InvalidConfig, "text", "'name'"):
        export(str(model), "text", tmp_path / "other", name="m")


def test_server_uses_protocol_and_sink(site, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(site))
    received = tmp_path / "received.jsonl"
    model = mixed_model(tmp_path / "flight-delay")
    sink = f"capture.sinks.audit.url=jsonl://localhost{received}"
    url = serve(str(model), "-C", sink).wait_ready().url
    row = {"carrier": "AA", "distance": 100.5, "hour": 3, "late": True}
    for path in ("/delay", "/endpoints/flight-delay/delay"):
        answer = requests.post(f"{url}{path}", json=row, timeout=30)
        assert answer.json() == {"delay": "yes"}
    assert requests.post(f"{url}/delay", json=[row], timeout=30).status_code == 400
    assert "/delay" in requests.get(f"{url}/openapi.json", timeout=30).json()["paths"]
    wait_until(lambda: received.exists() and received.read_text().count("\n") == 2)
    event = json.loads(received.read_text().splitlines()[1])
    assert event["id"] == answer.headers["X-Prediction-Id"]
    assert event["data"]["inputs"][0]["data"] == ["AA"]


def test_copy_without_entry_points_has_help(monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.commands.registered_in", lambda group: {})
    assert not mentions(done("--help"), "Extensions")
