"""Tests of the page that compares two versions."""

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from mlflow.entities import Metric, Param
from mlflow.entities.model_registry import ModelVersionTag

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
    from mlflow.server import handlers

    tracking = handlers._get_tracking_store()
    name = mlflow_app.model(versions=0)
    for number, weights in enumerate([(2.0, -1.0), (1.0, 2.0)], 1):
        run = tracking.create_run("0", "eva", 0, [], f"run {number}")
        tracking.log_batch(
            run.info.run_id, [Metric("accuracy", number / 10, 0, 0)], [Param("C", str(number))], []
        )
        folder = write_classifier(
            tmp_path / str(number), weights, parity="proven" if number == 1 else "warned"
        )
        mlflow_app.registry.create_model_version(name, str(folder), run.info.run_id)
        if number == 1:
            checks = (CheckResult("parity", "passed", "<b>proven</b>", {"rows": 1000.0}),)
            verdict = GateVerdict(name, "1", "", "", datetime.now(UTC), checks, {}, "", "")
            report = Path(run.info.artifact_uri, "gate.json")
            report.parent.mkdir(parents=True)
            report.write_text(json.dumps(verdict_as_json(verdict)))
            mlflow_app.stands(name, "1", "passed", "checked: parity")
            tag = ModelVersionTag("onnxserve.gate.report", f"{run.info.run_id}/gate_report.html")
            mlflow_app.registry.set_model_version_tag(name, "1", tag)
    return str(name)


class Reader(Login):
    """A login whose caller is not an administrator and may read one model."""

    def __init__(self, model: str) -> None:
        self._model = model

    def is_administrator(self) -> bool:
        return False

    def permission(self, model: str) -> ModelPermission:
        return ModelPermission(can_read=model == self._model)


def open_diff(mlflow_app, model, before="1", after="2"):
    answer = mlflow_app.client.get(
        f"{PAGE}/diff", query_string={"model": model, "before": before, "after": after}
    )
    return answer.status_code, answer.text


def rows(html):
    matches = re.findall(
        r'<tr><th scope="row">(.*?)</th><td [^>]*>(.*?)</td><td [^>]*>(.*?)</td>', html
    )
    return {name: (before, after) for name, before, after in matches}


def test_diff_page_shows_changed_values_and_the_command_for_predictions(mlflow_app, model):
    status, html = open_diff(mlflow_app, model)
    assert status == 200
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


def test_the_metrics_come_first_and_say_which_version_is_better(mlflow_app, model):
    html = open_diff(mlflow_app, model)[1]
    visible, _, folded = html.partition("<details")
    sections = [re.findall(r"<h2>(\w+)</h2>", part) for part in (visible, folded)]
    assert sections == [["Metrics", "Gate", "Parameters"], ["Parity"]]
    assert "Version 2 is better: accuracy 0.1 → 0.2." in visible
    accuracy = html[html.index(">accuracy<") :]
    change = re.search(r'data-label="Change">(.*?)</td>', accuracy)
    assert change is not None
    assert re.sub("<[^>]*>", "", change[1]) == "+0.1 better"


def test_a_caller_who_is_not_an_administrator_sees_no_run(mlflow_app, model, monkeypatch):
    monkeypatch.setitem(mlflow_app.app.extensions, "onnxserve.login", Reader(model))
    status, html = open_diff(mlflow_app, model)
    assert status == 200
    assert not {"accuracy", "C", "parity rows"} & rows(html).keys()
    assert mentions(html, "administrator")


def test_the_original_of_a_copy_is_read_only_with_a_permission(mlflow_app, model, monkeypatch):
    copies = mlflow_app.model(versions=0)
    for number in ("1", "2"):
        mlflow_app.registry.copy_model_version(
            mlflow_app.registry.get_model_version(model, number), copies
        )
    assert mentions(open_diff(mlflow_app, copies)[1], f"models:/{copies}/1", f"models:/{model}/1")
    monkeypatch.setitem(mlflow_app.app.extensions, "onnxserve.login", Reader(copies))
    assert mentions(open_diff(mlflow_app, copies)[1], f"models:/{copies}/1, original")


def test_a_model_that_may_not_be_read_and_a_version_that_does_not_exist_are_not_found(
    mlflow_app, model, monkeypatch
):
    for before in ("9", "", "x"):
        status, text = open_diff(mlflow_app, model, before)
        assert status == 404
        assert text.count("\n") == 0
    assert open_diff(mlflow_app, "")[0] == 404
    monkeypatch.setitem(mlflow_app.app.extensions, "onnxserve.login", Reader("another"))
    status, text = open_diff(mlflow_app, model)
    assert (status, mentions(text, model)) == (404, True)


def test_a_file_outside_of_the_version_or_too_large_is_not_read(
    mlflow_app, model, tmp_path, monkeypatch
):
    mlmodel = tmp_path / "2" / "MLmodel"
    mlmodel.write_text(mlmodel.read_text().replace("data: model.onnx", "data: ../1/model.onnx"))
    html = open_diff(mlflow_app, model)[1]
    assert mentions(html, f"models:/{model}/2, graph", "../1/model.onnx")
    monkeypatch.setattr(mlflow_stores, "_RECORD_BYTES", 100)
    assert mentions(
        open_diff(mlflow_app, model)[1], f"models:/{model}/1, graph", f"models:/{model}/1, model"
    )


@pytest.mark.parametrize("section", ["5", "{parity: [1]}", "{outputs: [1]}", "{provenance: 3}"])
def test_a_section_of_another_type_is_a_note(mlflow_app, model, tmp_path, section):
    (tmp_path / "2" / "MLmodel").write_text(f"flavors: {{onnxserve: {section}}}")
    status, html = open_diff(mlflow_app, model)
    assert (status, mentions(html, f"models:/{model}/2, model", "cannot be understood")) == (
        200,
        True,
    )
    assert rows(html)["accuracy"] == ("0.1", "0.2")


def test_a_store_that_cannot_be_read_is_a_note(mlflow_app):
    name = mlflow_app.model(versions=0)
    for _ in range(2):
        mlflow_app.registry.create_model_version(name, "gopher://host/folder")
    status, html = open_diff(mlflow_app, name)
    assert (status, mentions(html, f"models:/{name}/1, model", "log")) == (200, True)


def test_the_list_of_versions_links_to_the_page(mlflow_app, model):
    mlflow_app.store.add_endpoint(
        "onnxserve", new_endpoint(f"of-{model}", f"models:/{model}/Production")
    )
    html = mlflow_app.client.get(f"{PAGE}?endpoint=of-{model}").text
    links = re.findall(rf'href="({PAGE}/diff[^"]+)"', html)
    assert links == [f"{PAGE}/diff?model={model}&amp;before=1&amp;after=2"]
    assert mlflow_app.client.get(links[0].replace("&amp;", "&")).status_code == 200
