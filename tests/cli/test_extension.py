"""Commands, export formats and disturbances of other distributions: the examples of
docs/extend.md, and broken ones.
"""

import re
import sys
from pathlib import Path

import pytest

from mlflow_deploy_plugin import export, robustness
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from mlflow_deploy_plugin.core.registry.policy import parse_policy
from tests.support.classifiers import labelled, write_classifier
from tests.support.commands import done, onnxserve, said
from tests.support.models import mixed_model
from tests.support.refusals import mentions, refused

PAGE = Path("docs/extend.md").read_text()
BROKEN = {
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
EXAMPLES = re.findall(
    r"^`(flights_report|graph_text|stuck_sensor)\.py`:\n\n```python\n(.*?)```",
    PAGE,
    re.DOTALL | re.MULTILINE,
)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Add the page's distributions to the path, with commands that cannot be used."""
    for name, code in EXAMPLES:
        (tmp_path / f"{name}.py").write_text(code)
    with (tmp_path / "stuck_sensor.py").open("a") as module:
        module.write("from mlflow_deploy_plugin.core.errors import Refused\n")
        for name, function in BROKEN.items():
            module.write(f"{name.upper()} = Disturbance('', (0.5,), disturber={function})\n")
    metadata = tmp_path / "flights_report-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: flights-report\nVersion: 1.0\n"
    )
    (metadata / "entry_points.txt").write_text(
        "[onnxserve.commands]\n"
        "absent = no_such_module:command\n"
        "number = flights_report:__name__\n"
        "report = flights_report:report\n"
        "serve = flights_report:report\n"
        "[onnxserve.exporters]\n"
        "absent = no_such_module:write\n"
        "text = graph_text:text\n"
        "[onnxserve.disturbances]\n"
        "absent = no_such_module:DISTURBANCE\n"
        "noise = stuck_sensor:NOISE\n"
        "number = stuck_sensor:__name__\n"
        "stuck = stuck_sensor:STUCK\n"
        + "".join(f"{name} = stuck_sensor:{name.upper()}\n" for name in BROKEN)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name, _ in EXAMPLES:
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
