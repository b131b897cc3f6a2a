"""The distribution of docs/extend.md is installed, and a broken one is named."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from mlflow_deploy_plugin import export, robustness
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from mlflow_deploy_plugin.ship.batch.part import BatchPlan
from mlflow_deploy_plugin.ship.batch.run import run_batch
from tests.support.classifiers import labelled, write_classifier
from tests.support.commands import done, onnxserve, said
from tests.support.guides import blocks
from tests.support.models import mixed_model
from tests.support.refusals import mentions, refused
from tests.support.waiting import wait_until

PAGE = Path("docs/extend.md").read_text()
MODULES = dict(re.findall(r"^`(\w+)\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))
UNFIT_DISTURBANCES = {
    "useless": "None",
    "raising": "lambda version: 1 / 0",
    "empty": "lambda version: lambda strength, rng: []",
    "longer": "lambda version: lambda strength, rng: [('', {'a': [1.0] * 9})]",
    "texts": "lambda version: lambda strength, rng: [('', {'a': ['x'] * 100})]",
    "unknown": "lambda version: lambda strength, rng: [('', {'c': [1.0] * 100})]",
    "untyped": "lambda version: lambda strength, rng: [3]",
    "unfit": "lambda version: Refused('too few rows')",
}
"""Functions of disturbances that fail or do not fit the model."""
BROKEN = """
[onnxserve.commands]
absent = no_such_module:command
number = flights_report:__name__
serve = flights_report:report
[onnxserve.batch]
idle = unfit:IDLE
[onnxserve.exporters]
absent = no_such_module:write
[onnxserve.disturbances]
absent = no_such_module:DISTURBANCE
noise = stuck_sensor:STUCK
number = stuck_sensor:__name__
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
    unfit = [f"{name} = unfit:{name.upper()}" for name in UNFIT_DISTURBANCES]
    (metadata / "entry_points.txt").write_text(BROKEN + "\n".join(unfit))
    (tmp_path / "unfit.py").write_text(
        "from mlflow_deploy_plugin.core.errors import Refused\n"
        "from mlflow_deploy_plugin.core.spec.evaluation_names import Disturbance\n"
        "from contextlib import nullcontext\n"
        "print('welcome')\n"
        "IDLE = lambda jobs, workers: nullcontext(([], list))\n"
        + "".join(
            f"{name.upper()} = Disturbance('', (0.5,), disturber={function})\n"
            for name, function in UNFIT_DISTURBANCES.items()
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(site))
    yield
    for name in (*MODULES, "unfit"):
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


@pytest.mark.usefixtures("example")
def test_engine_without_results_fails(tmp_path, capsys):
    rows = tmp_path / "rows.csv"
    rows.write_text("carrier,distance,hour,late\nAA,100.5,3,true\n")
    model = mixed_model(tmp_path / "m")
    with refused(OnnxserveError, "idle", "0 of 1"):
        run_batch(BatchPlan(str(model), str(rows), str(tmp_path / "out"), engine="idle"))
    assert not capsys.readouterr().out
    assert not (tmp_path / "out" / "_SUCCESS").exists()


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


@pytest.fixture
def disturbed(example, tmp_path):
    model = str(write_classifier(tmp_path / "model"))
    return lambda strengths: robustness(model, labelled(100), "label", strengths=strengths)


def test_disturbance_of_another_distribution_is_measured(disturbed):
    report = disturbed({"unfit": [], "stuck": [], "noise": [], "texts": []})
    assert [name for name, _ in report.curves()] == ["noise", "stuck", "texts"]
    *_, stuck, texts = report.points
    assert (stuck.strength, stuck.variant) == (0.5, "a")
    assert stuck.loss > 0.1
    assert mentions(texts.refusal, "'a'")
    assert report.cannot == {"unfit": "too few rows"}


@pytest.mark.parametrize(
    "name", ["absent", "number", "useless", "raising", "empty", "longer", "unknown", "untyped"]
)
def test_broken_disturbance_is_named(name, disturbed):
    with refused(OnnxserveError, name):
        disturbed({name: [0.5]})


@pytest.mark.usefixtures("example")
def test_policy_reads_disturbance_of_another_distribution():
    policy = "robustness: {disturbances: {stuck: }, dataset: d.csv, target: label}"
    assert parse_policy(policy, "p").robustness.disturbances == {"stuck": (0.1, 0.5)}
    for unusable in ("absent", "stick"):
        with refused(InvalidConfig, unusable):
            parse_policy(policy.replace("stuck", unusable), "p")


def test_copy_without_entry_points_has_help(monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.commands.registered_in", lambda group: {})
    assert not mentions(done("--help"), "Extensions")
