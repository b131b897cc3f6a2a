"""Commands of other distributions: the example of docs/extend.md, and broken ones."""

import re
import sys
from pathlib import Path

import pytest

from tests.support.commands import done, onnxserve, said
from tests.support.refusals import mentions

PAGE = Path("docs/extend.md").read_text()
CODE = re.search(r"^`flights_report\.py`:\n\n```python\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)[
    1
]


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Add the page's distribution to the path, with commands that cannot be used."""
    (tmp_path / "flights_report.py").write_text(CODE)
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
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("flights_report", None)


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
