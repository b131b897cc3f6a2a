"""The model card of versions in real MLflow servers: its statements, and the places
that they link to.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.linear_model import LogisticRegression

import mlflow_deploy_plugin
from mlflow_deploy_plugin.core.store.store import Store
from mlflow_deploy_plugin.promote.evidence.card import make_card
from mlflow_deploy_plugin.promote.gate.run import run_gate
from mlflow_deploy_plugin.watch.result import Finding, State
from tests.support.audit_trail import store_of_server
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_rows
from tests.support.commands import done
from tests.support.refusals import mentions
from tests.support.registry_folder import RegistryFolder
from tests.support.results import result_of
from tests.support.statements import texts
from tests.support.stores import own_store
from tests.support.tracking import DEFAULT_EXPERIMENT

SECTIONS = {
    "model_details": ["purpose", "origin", "data", "signature"],
    "quantitative_analysis": [
        "metrics",
        "parity",
        "gate",
        "robustness",
        "segments",
        "explanations",
    ],
    "considerations": ["monitors"],
}

BARE = {
    "model_details": ["origin", "signature"],
    "quantitative_analysis": ["parity"],
    "considerations": [],
}


@dataclass(frozen=True)
class Registry:
    client: MlflowClient
    store: Store
    folder: Path

    def register(self, name, run_id=None):
        """Register a version of a model that was not logged, judged or explained."""
        self.client.create_registered_model(name)
        self.client.create_model_version(name, (self.folder / "model").as_uri(), run_id)


class Page(HTMLParser):
    """The elements, the addresses and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.elements = set()
        self.addresses = []
        self.texts = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data):
        self.texts += data


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory, new_database):
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    write_classifier(prepared.folder / "model")
    prepared.keep()
    return prepared


@pytest.fixture
def registry(classifier_folder):
    with (
        classifier_folder.restored() as client,
        own_store() as store,
    ):
        yield Registry(client, store, classifier_folder.folder)


@pytest.mark.long
def test_sections_have_the_recorded_values(registry):
    """Log, judge, disturb, explain and monitor a version."""
    from mlflow_deploy_plugin.watch.reports.log import build_report, log_result

    holdout = str(write_rows(registry.folder / "holdout.parquet", labelled(600, seed=3)))
    rows = pd.DataFrame(labelled(400))
    policy = f"evaluation: {{dataset: {holdout}, target: label}}"
    registry.client.create_registered_model(
        "toy", {"onnxserve.gate.policy": policy}, "Predicts toys."
    )
    with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
        mlflow.log_param("C", 1.0)
        mlflow.log_metric("accuracy", 0.875)
        mlflow.log_input(mlflow.data.from_pandas(rows, name="flights"))
        model = LogisticRegression().fit(rows[[*COLUMNS]], rows["label"])
        days = pd.date_range("2013-01-01", "2013-12-31", len(rows))
        mlflow_deploy_plugin.log_model(
            model,
            "model",
            registered_model_name="toy",
            input_example=rows[[*COLUMNS]].assign(day=days),
            event_time="day",
        )
    registry.client.set_model_version_tag("toy", "1", "onnxserve.parent", "models:/toy/0")
    mlflow_deploy_plugin.robustness(
        "models:/toy/1", holdout, "label", strengths={"noise": [0.1, 1]}, log=True
    )
    mlflow_deploy_plugin.explain("models:/toy/1", holdout, max_rows=10, log=True)
    run_gate("toy", "1", store=registry.store)
    states: list[State] = ["drift", "no drift", "no drift"]
    for day, state in enumerate(states):
        finding = Finding("a", "distribution", state, "the mean moved", 4.5, 3.0, "carrier=AA")
        window = result_of(day, "toys", (finding,), model="toy", version="1", state=state)
        log_result(window, build_report(window))
    other = result_of(9, "toys", model="another", version="1", state="drift")
    log_result(other, build_report(other))

    card = make_card("models:/toy/1", registry.store)
    assert {group: [*getattr(card, group)] for group in SECTIONS} == SECTIONS
    assert card.name == "toy"
    assert card.version == "1"
    assert mentions(texts(card, "purpose"), "Predicts toys")
    assert mentions(
        texts(card, "origin"), "models:/toy/0", "C 1.0", "LogisticRegression of sklearn"
    )
    for entry in registry.client.get_run(run.info.run_id).inputs.dataset_inputs:
        digest = f"{entry.dataset.name} has the digest {entry.dataset.digest} and 400 rows"
        assert mentions(texts(card, "data"), digest)
    assert mentions(texts(card, "data"), "400 rows, from 2013-01-01 to 2013-12-31")
    assert mentions(
        texts(card, "signature"), *(f"{name} (double)" for name in COLUMNS), "int64 [-1]"
    )
    assert mentions(texts(card, "metrics"), "accuracy 0.875")
    assert "onnxserve.parity" not in texts(card, "metrics")
    assert mentions(texts(card, "parity"), "proven", "probabilities")
    assert mentions(texts(card, "gate"), "passed", "evaluation", "budget")
    assert mentions(texts(card, "robustness"), "noise", "1.0", "600 rows")
    assert mentions(texts(card, "segments"), "carrier=AA", "no drift", "toys")
    assert mentions(texts(card, "explanations"), "10 predictions", *COLUMNS)
    assert mentions(texts(card, "monitors"), "2 no drift", "1 drift", "2013-07-03")


def test_gate_section_includes_the_served_version(registry):
    registry.register("pair")
    registry.client.create_model_version("pair", (registry.folder / "model").as_uri())
    registry.client.set_registered_model_alias("pair", "champion", "1")
    for version, state in (("1", "passed"), ("2", "failed")):
        for name, value in (
            ("", state),
            (".reason", f"the reason of {version}"),
            (".digest", "a digest"),
        ):
            registry.client.set_model_version_tag("pair", version, f"onnxserve.gate{name}", value)
    candidate, served = texts(make_card("models:/pair/2", registry.store), "gate").splitlines()[:2]
    assert mentions(candidate, "models:/pair/2 is failed", "the reason of 2")
    assert mentions(served, "served version 1 in @champion is passed", "the reason of 1")
    assert "served" not in texts(make_card("models:/pair/1", registry.store), "gate")


def test_user_text_is_escaped(registry, tmp_path):
    name = "<img src=x onerror=alert(1)>"
    image = "<script>alert(2)</script>"
    registry.register(name)
    registry.client.update_registered_model(name, f"{image}\n'\"&")
    registry.client.update_model_version(name, "1", "https://ada:secret@example.com")
    for tag, value in {"onnxserve.parent": image, "onnxserve.gate": "failed"}.items():
        registry.client.set_model_version_tag(name, "1", tag, value)
    registry.client.set_model_version_tag(name, "1", "onnxserve.gate.report", "javascript:alert(3)")
    make_card(f"models:/{name}/1", registry.store).write(tmp_path / "out")
    page = Page((tmp_path / "out" / "model_card.html").read_text())
    assert not page.elements & {"img", "script"}
    assert page.addresses == []
    assert name in page.texts
    assert image in page.texts
    assert "secret" not in page.texts + (tmp_path / "out" / "model_card.json").read_text()


def test_measurements_of_another_version_are_left_out(registry):
    run_id = registry.client.create_run(DEFAULT_EXPERIMENT).info.run_id
    registry.register("shared", run_id)
    report = {
        "model": "models:/shared/2",
        "rows": 7,
        "importance": [{"column": "a", "mean_abs": 1.0}],
    }
    registry.client.log_dict(run_id, report, "explain/explain.json")
    assert texts(make_card("models:/shared/1", registry.store), "explanations") == ""
    registry.client.log_dict(
        run_id, {**report, "model": "models:/shared/1"}, "explain/explain.json"
    )
    assert mentions(
        texts(make_card("models:/shared/1", registry.store), "explanations"), "7 predictions", "a 1"
    )
    registry.client.copy_model_version("models:/shared/1", "copied")
    copied = make_card("models:/copied/1", registry.store)
    assert mentions(texts(copied, "origin"), "copy of models:/shared/1")
    assert mentions(texts(copied, "explanations"), "7 predictions")


def test_unreadable_record_is_a_statement(registry):
    run_id = registry.client.create_run(DEFAULT_EXPERIMENT).info.run_id
    registry.register("broken", run_id)
    registry.client.log_text(
        run_id, '{"model": "models:/broken/1", "metric": 1}', "robustness/robustness.json"
    )
    registry.client.log_text(run_id, "[", "explain/explain.json")
    registry.client.set_model_version_tag("broken", "1", "onnxserve.monitor.x/window", "soon")
    card = make_card("models:/broken/1", registry.store)
    for section in ("robustness", "explanations", "segments", "monitors"):
        assert mentions(texts(card, section), section, "cannot be understood")


def test_events_of_a_deleted_namesake_are_left_out(registry):
    registry.store.record("approve", model="again", version="1", after="@champion", actor="ada")
    registry.register("again")
    registry.store.record("approve", model="again", version="2", after="@champion", actor="ada")
    registry.store.record("approve", model="again", version="1", after="@champion", actor="bob")
    approvals = texts(make_card("models:/again/1", registry.store), "approvals")
    assert (mentions(approvals, "bob"), mentions(approvals, "ada")) == (True, False)


def test_tampered_events_are_marked_unsigned(registry):
    registry.register("toy")
    with store_of_server(str(registry.store._engine.url), registry.folder) as server:
        server.record("adopt", actor="ada", model="toy")
        moved = {"act": "a" * 16, "moved": {"place": "@champion", "before": ""}}
        for store, actor in ((server, "ada"), (registry.store, "forged")):
            for action in ("register", "approve", "alias"):
                store.record(action, actor=actor, model="toy", version="1", detail=moved)
        registry.store.record("promote", actor="forged", model="toy", version="1", detail=moved)
    card = make_card("models:/toy/1", registry.store)
    assert mentions(texts(card, "origin"), "registered by ada")
    lines = [*texts(card, "approvals").splitlines(), *texts(card, "deployments").splitlines()]
    unsigned = ["not signed by MLflow's server" in line for line in lines]
    assert ["forged" in line for line in lines] == unsigned
    assert (len(lines), sum(unsigned)) == (6, 3)


def test_command_writes_page_and_document(registry):
    registry.register("toy")
    before = datetime.now(UTC)
    printed = done("audit card models:/toy/1")
    assert mentions(
        printed, "toy version 1", "toy-1-card/model_card.html", "toy-1-card/model_card.json"
    )
    document = json.loads((registry.folder / "toy-1-card" / "model_card.json").read_text())
    assert {group: [*document[group]] for group in SECTIONS} == BARE
    entries = [entry for group in SECTIONS for part in document[group].values() for entry in part]
    assert {entry["url"] for entry in entries} == {""}  # A database has no pages.
    assert datetime.fromisoformat(document["created_at"]) >= before
    page = Page((registry.folder / "toy-1-card" / "model_card.html").read_text())
    assert all(entry["text"] in page.texts for entry in entries)
    assert "No record" not in page.texts
    assert "Considerations" not in page.texts
