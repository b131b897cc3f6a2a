"""Commands and export formats of other distributions: the examples of docs/extend.md,
and broken ones.
"""

import re
import sys
from pathlib import Path

import pytest

from mlflow_deploy_plugin import export
from mlflow_deploy_plugin.core.errors import InvalidConfig, OnnxserveError
from tests.support.commands import done, onnxserve, said
from tests.support.models import mixed_model
from tests.support.refusals import mentions, refused

PAGE = Path("docs/extend.md").read_text()
EXAMPLES = re.findall(
    r"^`(flights_report|graph_text)\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE
)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Add the page's distributions to the path, with commands that cannot be used."""
    for name, code in EXAMPLES:
        (tmp_path / f"{name}.py").write_text(code)
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


def test_copy_without_entry_points_has_help(monkeypatch):
    monkeypatch.setattr("mlflow_deploy_plugin.cli.commands.registered_in", lambda group: {})
    assert not mentions(done("--help"), "Extensions")
