"""Tests of a model with approvals, on a server with accounts: which versions answer the
requests of its endpoint.
"""

from dataclasses import dataclass

import pytest
import requests
from mlflow.deployments import BaseDeploymentClient, get_deploy_client
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.ship.deployments.backends import local
from tests.support.accounts import People, people
from tests.support.classifiers import write_classifier
from tests.support.commands import done, onnxserve
from tests.support.refusals import mentions, refused
from tests.support.waiting import free_port

APPROVALS = "approvals: {count: 1, evaluation: optional}\n"
POLICY = f"gated_aliases: [champion]\nskip: [evaluation, robustness, budget]\n{APPROVALS}"
LIMITED = f"{POLICY}unapproved: {{share: 5%, for: 1h}}"
pytestmark = pytest.mark.long


@dataclass
class Credit:
    """A model whose version 1 is approved and served by the endpoint `credit`, and
    whose version 2 is not approved.
    """

    server: People
    model: str
    client: BaseDeploymentClient

    def served(self):
        url = self.client.get_deployment("credit")["url"]
        answer = requests.post(f"{url}/invocations", json={"inputs": [[1.0, 0.0]]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.headers["X-Model-Version"]


@pytest.fixture(scope="module")
def credit(tmp_path_factory, new_database):
    folder = tmp_path_factory.mktemp("credit")
    with (
        people(folder, new_database, "alice") as server,
        server.logged_in("alice"),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(local, "FIRST_PORT", free_port() - 10_000)
        client = get_deploy_client("onnxserve")
        model = server.register("alice", POLICY)
        with server.logged_in("alice") as registry:
            other = write_classifier(folder / "other", (9.0, 9.0))
            run = registry.create_run(registry.create_experiment("other"))
            registry.log_artifacts(run.info.run_id, str(other), "model")
            registry.create_model_version(model, f"{run.info.artifact_uri}/model", run.info.run_id)
        credit = Credit(server, model, client)
        done(f"promote models:/{model}/1 --to @champion --request")
        with server.logged_in("admin"):
            done(f"request approve models:/{model}/1 --to @champion")
        done(f"promote models:/{model}/1 --to @champion --wait 0")
        try:
            client.create_deployment("credit", f"models:/{model}@champion")
            yield credit
        finally:
            client.delete_endpoint("credit")


def test_unapproved_version_answers_within_limit(credit):
    second = f"models:/{credit.model}/2"
    assert credit.served() == "1"
    cannot_answer_all_traffic(credit, second)
    with credit.server.logged_in("admin") as admin:
        admin.set_registered_model_tag(credit.model, "onnxserve.gate.policy", LIMITED)
    a_share_is_shown(credit, second)


def cannot_answer_all_traffic(credit, second):
    rollout = onnxserve(f"rollout start credit --to {second} --steps 100 --every 30d")
    assert rollout.exit_code == 1
    assert mentions(rollout.stderr, second, "lacks the approval", "rollout of 100 %")
    names = (second, "lacks the approval", "100 %", f"promote models:/{credit.model}/2")
    with refused(MlflowException, *names):
        credit.client.update_deployment("credit", second)
    assert credit.served() == "1"


def a_share_is_shown(credit, second):
    credit.client.create_deployment("challenger", second, endpoint="credit")
    assert onnxserve("endpoint traffic credit credit=90 challenger=10").exit_code == 1
    done("endpoint traffic credit credit=95 challenger=5")
    text = f"{second} answers 5 % of the requests without an approval, until "
    for line in ("list", "endpoint list", "endpoint get credit", "audit history credit"):
        assert text in done(line)
    assert credit.client.get_endpoint("credit")["traffic"] == {"credit": 95, "challenger": 5}
