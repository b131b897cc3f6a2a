"""Tests of the page that compares two versions."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.server import handlers

from mlflow_deploy_plugin.core.spec.document import new_endpoint
from mlflow_deploy_plugin.promote.gate.verdict import CheckResult, GateVerdict, verdict_as_json
from mlflow_deploy_plugin.ui.guard import mlflow_stores
from mlflow_deploy_plugin.ui.logins.login import Login, ModelPermission
from tests.support.classifiers import write_classifier
from tests.support.console import PAGE
from tests.support.refusals import mentions


@pytest.fixture
def model(mlflow_app, tmp_path):
    """Register two versions, the first of which has a run and a gate report."""
    tracking = handlers._get_tracking_store()
    name = mlflow_app.model(versions=0)
    runs = []
    for number, weights, parity in ((1, (2.0, -1.0), "proven"), (2, (1.0, 2.0), "warned")):
        run = tracking.create_run("0", "eva", 0, [], f"run {number}").info
        metrics = [Metric("accuracy", number / 10, 0, 0)]
        tracking.log_batch(run.run_id, metrics, [Param("C", str(number))], [])
        folder = write_classifier(tmp_path / str(number), weights, parity=parity)
        mlflow_app.registry.create_model_version(name, str(folder), run.run_id)
        runs.append(run)
    checks = (CheckResult("parity", "passed", "<b>proven</b>", {"rows": 1000.0}),)
    verdict = GateVerdict(str(name), "1", "", "", datetime.now(UTC), checks, {}, "", "")
    report = Path(runs[0].artifact_uri, "gate.json")
    report.parent.mkdir(parents=True)
    report.write_text(json.dumps(verdict_as_json(verdict)))
    name.passed("1")
    name.tag("1", "onnxserve.gate.report", f"{runs[0].run_id}/gate_report.html")
    return name


class Reader(Login):
    """A login whose caller is not an administrator and may read one model."""

    def __init__(self, model):
        self._model = model

    def is_administrator(self):
        return False

    def permission(self, model):
        return ModelPermission(can_read=model == self._model)


@pytest.fixture
def diff(mlflow_app):
    """A function that returns the page of a model, which has this status."""

    def opened(model, before="1", status=200):
        answer = mlflow_app.client.get(f"{PAGE}/diff?model={model}&before={before}&after=2")
        assert answer.status_code == status
        return answer.text

    return opened


@pytest.fixture
def read_only(mlflow_app, monkeypatch):
    """A function that limits the caller to reading a model."""
    extensions = mlflow_app.app.extensions
    return lambda model: monkeypatch.setitem(extensions, "onnxserve.login", Reader(model))


def rows(html):
    matches = re.findall(
        r'<tr><th scope="row">(.*?)</th><td [^>]*>(.*?)</td><td [^>]*>(.*?)</td>', html
    )
    return {name: (before, after) for name, before, after in matches}


def test_diff_page_shows_changed_values(model, diff):
    html = diff(model)
    changed = rows(html)
    assert changed["accuracy"] == ("0.1", "0.2")
    assert changed["C"] == ("1", "2")
    assert changed["parity rows"] == ("1000", "–")
    assert changed["parity"] == ("passed", "–")
    assert changed["state"] == ("proven", "warned")
    assert "operator MatMul" not in changed
    assert f'<a href="/#/models/{model}/versions/2">2</a>' in html
    assert mentions(html, f"onnxserve diff models:/{model}/1 models:/{model}/2")
    assert mentions(html, f"models:/{model}/2, gate")
    visible, _, folded = html.partition("<details")
    sections = [re.findall(r"<h2>(\w+)</h2>", part) for part in (visible, folded)]
    assert sections == [["Metrics", "Gate", "Parameters"], ["Parity"]]
    assert "Version 2 is better: accuracy 0.1 → 0.2." in visible
    accuracy = html[html.index(">accuracy<") :]
    change = re.search(r'data-label="Change">(.*?)</td>', accuracy)
    assert change is not None
    assert re.sub("<[^>]*>", "", change[1]) == "+0.1 better"


def test_only_administrators_see_runs(model, diff, read_only):
    read_only(model)
    html = diff(model)
    assert not {"accuracy", "C", "parity rows"} & rows(html).keys()
    assert mentions(html, "administrator")


def test_original_of_a_copy_needs_a_permission(mlflow_app, model, diff, read_only):
    registry = mlflow_app.registry
    copies = mlflow_app.model(versions=0)
    for number in "12":
        registry.copy_model_version(registry.get_model_version(model, number), copies)
    assert mentions(diff(copies), f"models:/{copies}/1", f"models:/{model}/1")
    read_only(copies)
    assert mentions(diff(copies), f"models:/{copies}/1, original")


def test_unreadable_model_or_unknown_version_is_404(model, diff, read_only):
    for before in ("9", "", "x"):
        assert diff(model, before, status=404).count("\n") == 0
    diff("", status=404)
    read_only("another")
    assert mentions(diff(model, status=404), model)


def test_foreign_and_large_files_are_skipped(model, diff, tmp_path, monkeypatch):
    mlmodel = tmp_path / "2" / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace("data: model.onnx", "data: ../1/model.onnx"))
    assert mentions(diff(model), f"models:/{model}/2, graph", "../1/model.onnx")
    monkeypatch.setattr(mlflow_stores, "_RECORD_BYTES", 100)
    assert mentions(diff(model), f"models:/{model}/1, graph", f"models:/{model}/1, model")


def test_invalid_section_is_a_note(model, diff, tmp_path):
    for section in ("5", "{parity: [1]}", "{outputs: [1]}", "{provenance: 3}"):
        (tmp_path / "2" / "MLmodel").write_text(f"flavors: {{onnxserve: {section}}}")
        html = diff(model)
        assert mentions(html, f"models:/{model}/2, model", "cannot be understood")
        assert rows(html)["accuracy"] == ("0.1", "0.2")


def test_unreadable_store_is_a_note(mlflow_app, diff):
    name = mlflow_app.model(versions=0)
    for _ in range(2):
        mlflow_app.registry.create_model_version(name, "gopher://host/folder")
    assert mentions(diff(name), f"models:/{name}/1, model", "log")


def test_versions_are_linked_to_their_diff(mlflow_app, model):
    spec = new_endpoint(f"of-{model}", f"models:/{model}/Production")
    mlflow_app.store.add_endpoint("onnxserve", spec)
    html = mlflow_app.client.get(f"{PAGE}?endpoint=of-{model}").text
    links = re.findall(rf'href="({PAGE}/diff[^"]+)"', html)
    assert links == [f"{PAGE}/diff?model={model}&amp;before=1&amp;after=2"]
