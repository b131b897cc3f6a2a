"""Tests of the gate on a real registry and a real endpoint that requires it: passing
versions are promoted and served, failing versions are refused with their figures,
versions that bypass the gate are not served, and force is recorded.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.deployments import BaseDeploymentClient

from mlflow_deploy_plugin.cli.commands import main
from tests.support.classifiers import COLUMNS, labelled, write_classifier, write_rows
from tests.support.deployments import empty_home
from tests.support.refusals import mentions
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.waiting import wait_until

PATIENCE = 90.0
MODEL = "gated-toy"


@dataclass
class Journey:
    client: MlflowClient
    deployments: BaseDeploymentClient
    holdout: Path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, list(arguments))

    def served(self) -> str:
        url = self.deployments.get_deployment("toy")["url"]
        answer = requests.post(f"{url}/invocations", json={"inputs": [[1.0, 0.0]]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Model-Version"]

    def tags(self, version: int) -> dict[str, str]:
        return dict(self.client.get_model_version(MODEL, str(version)).tags)


@pytest.fixture(scope="module")
def journey(mlflow_server, tmp_path_factory):
    """Register versions 1 and 2 (the best possible), 3 (worse) and 4 (like 1). The
    policy is in the model's tag.
    """
    folder = tmp_path_factory.mktemp("gate")
    holdout = write_rows(folder / "holdout.parquet", labelled(600))
    rows = labelled(300, seed=1)
    reference = {name: rows[name] for name in COLUMNS}
    with tracking_at(mlflow_server.url), empty_home(folder) as deployments:
        client = MlflowClient()
        for number, weights in enumerate([(2.0, -1.0), (4.0, -2.0), (1.0, 2.0), (2.0, -1.0)]):
            model = write_classifier(folder / str(number), weights, reference=reference)
            with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT) as run:
                mlflow.log_artifacts(str(model), "model")
            mlflow.register_model(f"runs:/{run.info.run_id}/model", MODEL)
        evaluation = f"{{dataset: {holdout}, target: label, metric: roc_auc, resamples: 200}}"
        client.set_registered_model_tag(
            MODEL, "onnxserve.gate.policy", f"evaluation: {evaluation}\nbudget: {{batch: 8}}"
        )
        yield Journey(client, deployments, holdout)


@pytest.mark.long
def test_a_gate_stands_between_the_registry_and_the_traffic(journey):
    first = journey.run("promote", f"models:/{MODEL}/1", "--to", "Production")
    assert first.exit_code == 0, first.output
    assert mentions(first.stdout, MODEL, "version 1", "in Production")
    assert "no version to" in first.stdout

    config = {"require": "gate=passed"}
    journey.deployments.create_deployment("toy", f"models:/{MODEL}/Production", config=config)
    assert journey.served() == "1"

    passes(journey)
    is_refused(journey)
    by_force(journey)
    behind_its_back(journey)


def passes(journey):
    """An equally good version is judged, promoted, and served
    when the command returns.
    """
    judged = journey.run("gate", f"models:/{MODEL}/2", "-o", "json")
    assert judged.exit_code == 0, judged.output
    document = json.loads(judged.stdout)
    assert document["state"] == "passed"
    assert {check["name"]: check["state"] for check in document["checks"]} == dict.fromkeys(
        ("parity", "signature", "evaluation", "robustness", "budget"), "passed"
    )
    artifacts = {entry.path for entry in journey.client.list_artifacts(document["run"]["run_id"])}
    assert {"gate_report.html", "gate.json"} <= artifacts
    report = journey.tags(2)["onnxserve.gate.report"]
    assert report == f"{document['run']['url']}/artifacts/gate_report.html"

    promoted = journey.run("promote", f"models:/{MODEL}/2", "--to", "Production", "-o", "json")
    assert promoted.exit_code == 0, promoted.output
    # The recent verdict was used again.
    assert mentions(promoted.stderr, "the verdict on version 2")
    answer = json.loads(promoted.stdout)
    assert answer["before"] == "1"
    assert answer["gate"] == "passed"
    (served,) = answer["served"]
    assert served["deployment"] == "toy"
    assert served["state"] == "serves it"
    assert journey.served() == "2"


def is_refused(journey):
    """A worse version is refused with the figures, and the served version remains."""
    refused = journey.run("promote", f"models:/{MODEL}/3", "--to", "Production")
    assert refused.exit_code == 1
    assert mentions(refused.stderr, MODEL, "version 3", "Production", "passed its gate")
    assert mentions(refused.stderr, "evaluation", "the margin of 0.0100")
    assert journey.tags(3)["onnxserve.gate"] == "failed"
    assert journey.client.get_model_version(MODEL, "3").current_stage == "None"
    assert journey.served() == "2"


def by_force(journey):
    """A user forces the worse version: it is served, and the user and the reason are
    recorded.
    """
    forced = journey.run(
        "promote", f"models:/{MODEL}/3", "--to", "Production", "--force", "--why", "a drill"
    )
    assert forced.exit_code == 0, forced.output
    assert mentions(forced.stdout, "toy/toy serves")
    assert journey.served() == "3"
    assert journey.tags(3)["onnxserve.gate"] == "forced"
    assert mentions(journey.tags(3)["onnxserve.gate.reason"], "a drill", "the gate: evaluation")

    history = journey.run("audit", "history", "toy", "-o", "jsonl")
    events = [json.loads(line) for line in history.stdout.splitlines()]
    done = [(event["action"], event["version"]) for event in events if event["model"] == MODEL]
    assert done == [
        *[("gate", "1"), ("promote", "1")],
        *[("gate", "2"), ("promote", "2")],
        *[("gate", "3"), ("refused", "3"), ("promote", "3")],
    ]
    assert (events[-1]["why"], events[-1]["detail"]["forced"]) == ("a drill", True)


def behind_its_back(journey):
    """A version that the API moves to Production without the gate is not served, and
    the reason is visible to users.
    """
    journey.client.transition_model_version_stage(MODEL, "4", "Production")
    wait_until(
        lambda: "onnxserve.error" in journey.tags(4),
        PATIENCE,
        "the version says why it is not served",
    )
    reason = "it has not been through the gate, but this endpoint requires gate=passed"
    assert reason in journey.tags(4)["onnxserve.error"]
    assert reason in journey.deployments.get_deployment("toy")["error"]
    assert journey.served() == "3"
