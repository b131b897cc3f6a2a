"""Grafana's dashboards: generated from their description, for Grafana 11, and limited
to existing metrics.
"""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from tests.support.metrics_page import undeclared_metrics

GRAFANA = Path(__file__).parents[2] / "docker" / "stack" / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))


def targets(file):
    """Return every query of a dashboard, with the title of its panel."""
    panels = json.loads(file.read_text())["panels"]
    return [(panel["title"], target) for panel in panels for target in panel["targets"]]


def test_dashboard_files_match_their_generator():
    source = importlib.util.spec_from_file_location(
        "make_dashboards", GRAFANA / "make_dashboards.py"
    )
    assert source is not None
    module = importlib.util.module_from_spec(source)
    assert source.loader is not None
    source.loader.exec_module(module)
    assert {file.stem: file.read_text() for file in DASHBOARDS} == {
        name: module.text(name) for name in module.DASHBOARDS
    }


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_dashboard_uses_declared_metrics(file):
    made = json.loads(file.read_text())
    assert made["schemaVersion"] == 39
    assert made["uid"] == f"onnxserve-{file.stem}"
    assert made["templating"]["list"][0] | {"label": ""} == {
        "name": "datasource",
        "type": "datasource",
        "query": "prometheus",
        "label": "",
    }
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    variables = {variable["name"] for variable in made["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(made["panels"]))) <= variables
    assert undeclared_metrics(" ".join(target["expr"] for _, target in targets(file))) == set()
