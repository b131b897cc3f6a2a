"""Tests of the gate on a real registry and a real endpoint that requires it: passing
versions are promoted and served, failing versions are refused with their figures,
versions that bypass the gate are not served, and force is recorded.
"""

import json
from dataclasses import dataclass

import mlflow
import pytest
import requests
from click.testing import CliRunner
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

    def run(self, line, status=0):
        """Run a command, and return its result."""
        result = CliRunner().invoke(main, line.format(model=f"models:/{MODEL}").split())
        assert result.exit_code == status, result.output
        return result

    def served(self):
        url = self.deployments.get_deployment("toy")["url"]
        answer = requests.post(f"{url}/invocations", json={"inputs": [[1.0, 0.0]]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Model-Version"]

    def tags(self, version):
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
        yield Journey(client, deployments)


@pytest.mark.long
def test_gate_controls_traffic(journey):
    first = journey.run("promote {model}/1 --to Production")
    assert mentions(first.output, MODEL, "version 1", "in Production")
    config = {"require": "gate=passed"}
    journey.deployments.create_deployment("toy", f"models:/{MODEL}/Production", config=config)
    assert journey.served() == "1"
    good_version_is_promoted(journey)
    worse_version_is_refused_until_forced(journey)
    ungated_version_is_not_served(journey)


def good_version_is_promoted(journey):
    judged = json.loads(journey.run("gate {model}/2 -o json").stdout)
    assert {check["state"] for check in judged["checks"]} == {"passed"}
    report = f"{judged['run']['url']}/artifacts/gate_report.html"
    assert journey.tags(2)["onnxserve.gate.report"] == report

    # The recent verdict is used again.
    promoted = journey.run("promote {model}/2 --to Production")
    assert mentions(promoted.output, "the verdict on version 2", "toy/toy serves")
    assert journey.served() == "2"


def worse_version_is_refused_until_forced(journey):
    refused = journey.run("promote {model}/3 --to Production", status=1)
    assert mentions(refused.output, MODEL, "version 3", "evaluation", "the margin of 0.0100")
    assert journey.tags(3)["onnxserve.gate"] == "failed"
    assert journey.client.get_model_version(MODEL, "3").current_stage == "None"
    assert journey.served() == "2"

    journey.run("promote {model}/3 --to Production --force --why drill")
    assert journey.served() == "3"
    assert journey.tags(3)["onnxserve.gate"] == "forced"
    assert mentions(journey.tags(3)["onnxserve.gate.reason"], "drill", "evaluation")
    *_, promotion = journey.run("audit history toy -o jsonl").stdout.splitlines()
    event = json.loads(promotion)
    assert (event["action"], event["version"], event["why"]) == ("promote", "3", "drill")


def ungated_version_is_not_served(journey):
    journey.client.transition_model_version_stage(MODEL, "4", "Production")
    wait_until(lambda: "onnxserve.error" in journey.tags(4), PATIENCE, "version 4 has an error")
    assert mentions(journey.tags(4)["onnxserve.error"], "the gate", "gate=passed")
    assert mentions(journey.deployments.get_deployment("toy")["error"], "gate=passed")
    assert journey.served() == "3"
