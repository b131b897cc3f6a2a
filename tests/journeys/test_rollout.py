"""Tests of rollouts from the command line, on a real MLflow server and an endpoint
under traffic: a good version is promoted, a bad version is rolled back, and `rollback`
restores the previous version.
"""

from dataclasses import dataclass

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Store
from tests.support.commands import onnxserve
from tests.support.models import FAILING, adder, parse_graph
from tests.support.refusals import mentions
from tests.support.tracking import DEFAULT_EXPERIMENT, tracking_at
from tests.support.traffic import Traffic
from tests.support.waiting import wait_until

PATIENCE = 90.0


@dataclass
class Arena:
    """An endpoint under traffic that follows models:/NAME/Production, where version 1
    is.

    Version 2 answers as version 1 does, version 3 answers differently, and version 4
    fails for one of five requests.
    """

    model: str
    store: Store
    traffic: Traffic
    url: str

    def run(self, line):
        """Return the exit status and output of `onnxserve LINE`."""
        result = onnxserve(line)
        return result.exit_code, result.output

    def stages(self):
        versions = MlflowClient().search_model_versions(f"name='{self.model}'")
        return {str(version.version): str(version.current_stage) for version in versions}

    def tags(self, version):
        return dict(MlflowClient().get_model_version(self.model, version).tags)

    def variants(self):
        spec = self.store.require_endpoint("arena").spec
        return {name: variant.weight for name, variant in spec.variants.items()}

    def events(self, action):
        return [event for event in self.store.events("arena") if event.action == action]

    def back_to_the_beginning(self):
        """Restore the initial state: only version 1, in Production, and no version with
        the tag of a rollback.
        """
        client = MlflowClient()
        for version in ("2", "3", "4"):
            client.delete_model_version_tag(self.model, version, "onnxserve.rolled_back")
        client.transition_model_version_stage(
            self.model, "1", "Production", archive_existing_versions=True
        )
        wait_until(lambda: self.traffic.last_version == "1", PATIENCE, "version 1 answers again")


@pytest.fixture(scope="module")
def arena(mlflow_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arena")
    name = f"arena-{folder.name}"
    with tracking_at(mlflow_server.url), pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXSERVE_HOME", str(folder / "home"))
        patch.setenv("ONNXSERVE_POLL_SECONDS", "0.5")
        for graph in (adder(1.0), adder(1.0), adder(2.0), parse_graph(FAILING)):
            with mlflow.start_run(experiment_id=DEFAULT_EXPERIMENT):
                mlflow.onnx.log_model(
                    graph,
                    name="model",
                    registered_model_name=name,
                    pip_requirements=["onnxruntime"],
                )
        MlflowClient().transition_model_version_stage(name, "1", "Production")
        client = get_deploy_client("onnxserve")
        url = client.create_deployment("arena", f"models:/{name}/Production")["url"]
        store = open_store(load_settings().store_url)
        traffic = Traffic(url)
        arena = Arena(name, store, traffic, f"{url}/invocations")
        try:
            traffic.start()
            yield arena
        finally:
            traffic.stop()
            client.delete_deployment("arena")
            store.close()


@pytest.fixture
def fresh(arena):
    arena.back_to_the_beginning()
    before = arena.traffic.answers.copy()
    yield arena
    served = arena.traffic.answers - before
    # No rollout may make a request to version 1 or 2 fail.
    assert {key for key in served if key[0] in ("", "1", "2") and key[1] != 200} == set()


@pytest.mark.long
def test_good_version_is_promoted_and_rolled_back(fresh):
    limits = "--abort-on error_rate>1%,disagreement>20% --min-requests 20"
    status, output = fresh.run(
        f"rollout start arena --to models:/{fresh.model}/2 --steps 20,100 --every 1s {limits} "
        "--wait"
    )

    assert status == 0, output
    assert mentions(output, "version 1 → 2", "promoted")
    assert fresh.stages() == {"1": "Archived", "2": "Production", "3": "None", "4": "None"}
    assert fresh.variants() == {"arena": 100}
    wait_until(lambda: fresh.traffic.last_version == "2", PATIENCE, "version 2 answers")
    end = fresh.events("rollout.end")[-1]
    assert end.detail["criteria"]["error_rate>1%"]["figures"].startswith("0.00% of")

    status, output = fresh.run("rollback arena --why complaints")

    assert status == 0, output
    assert mentions(output, fresh.model, "1 instead of 2")
    assert mentions(output, "before version 2", "audit trail")
    assert fresh.stages() == {"1": "Production", "2": "Archived", "3": "None", "4": "None"}
    answer = requests.post(fresh.url, json={"inputs": [[0.0]]}, timeout=30)
    assert answer.headers["X-Model-Version"] == "1"
    assert mentions(fresh.tags("2")["onnxserve.rolled_back"], "arena", "complaints")


@pytest.mark.long
@pytest.mark.parametrize(
    ("version", "abort_on", "said"),
    [
        ("3", "disagreement>20%", "disagreement>20%: version 3 answers 100.00% of"),
        ("4", "error_rate>1%", "error_rate>1%: "),
    ],
)
def test_bad_version_is_rolled_back(fresh, version, abort_on, said):
    status, output = fresh.run(
        f"rollout start arena --to {version} --steps 40,100 --every 5m --abort-on {abort_on} "
        "--min-requests 20 --wait"
    )

    assert status == 1
    assert mentions(output, f"version 1 → {version}", "rolled back")
    assert said in output
    assert fresh.stages()["1"] == "Production"
    assert fresh.variants() == {"arena": 100}
    assert fresh.tags(version)["onnxserve.rolled_back"].startswith(f"arena: {said}")
    assert fresh.events("rollout.end")[-1].why.startswith(said)
