"""Tests of rollouts from the command line, on a real MLflow server and an endpoint
under traffic: a good version is promoted, a bad version is rolled back, and `rollback`
restores the previous version.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import pytest
import requests
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.deployments import get_deploy_client

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.store.audit import AuditEvent
from mlflow_deploy_plugin.core.store.database import open_store
from mlflow_deploy_plugin.core.store.store import Rollout, Store
from mlflow_deploy_plugin.promote.rollouts.commands import RolloutRequest, start_rollout
from mlflow_deploy_plugin.promote.rollouts.leadership import rollouts_lease_name
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.models import FAILING, adder, parse_graph
from tests.support.refusals import mentions
from tests.support.tracking import DEFAULT_EXPERIMENT, pass_gate, tracking_at
from tests.support.traffic import Traffic
from tests.support.waiting import free_port, wait_until

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
    folder: Path
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow_deploy_plugin.cli", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
            env=os.environ | environment,
        )
        self.processes.append(process)
        return process

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return the exit status and output of `onnxserve ARGUMENTS`, run in this
        process, which has already imported MLflow.
        """
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output

    def rollout(self) -> Rollout:
        return self.store.rollouts("arena")[-1]

    def works(self, controller: subprocess.Popen[str]) -> bool:
        """Return True if this controller does the rollouts."""
        with open_deployments(lambda line: None) as deployments:
            view = self.store.lease(rollouts_lease_name(deployments.place("arena")))
        return view is not None and view.holder.endswith(f"(process {controller.pid})")

    def begin_rollout(self, *arguments: str) -> None:
        """Start a rollout for the running controller."""
        status, output = self.run("rollout", "start", "arena", "--min-requests", "20", *arguments)
        assert status == 0, output

    def stages(self) -> dict[str, str]:
        versions = MlflowClient().search_model_versions(f"name='{self.model}'")
        return {str(version.version): str(version.current_stage) for version in versions}

    def tags(self, version: str) -> dict[str, str]:
        return dict(MlflowClient().get_model_version(self.model, version).tags)

    def variants(self) -> dict[str, int]:
        stored = self.store.endpoint("arena")
        assert stored is not None
        return {name: variant.weight for name, variant in stored.spec.variants.items()}

    def events(self, action: str) -> list[AuditEvent]:
        return [event for event in self.store.events("arena") if event.action == action]

    def set_model(self, model_uri: str) -> None:
        get_deploy_client("onnxserve").update_deployment("arena", model_uri)

    def served(self) -> tuple[str, str]:
        """Return the model URI of the deployment, and the version that answers."""
        stored = self.store.endpoint("arena")
        assert stored is not None
        answer = requests.post(self.url, json={"inputs": [[0.0]]}, timeout=30)
        return stored.spec.variants["arena"].model, answer.headers["X-Model-Version"]

    def back_to_the_beginning(self) -> None:
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
        # The port is reserved for the endpoint while its server is stopped.
        config = {"server.port": free_port()}
        url = client.create_deployment("arena", f"models:/{name}/Production", config=config)["url"]
        store = open_store(load_settings().store_url)
        traffic = Traffic(url)
        arena = Arena(name, store, traffic, f"{url}/invocations", folder)
        try:
            traffic.start()
            yield arena
        finally:
            traffic.stop()
            for process in arena.processes:
                process.kill()
                process.wait()
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
def test_a_rollout_of_a_good_version_ends_in_its_promotion_and_a_rollback_brings_the_old_one_back(
    fresh,
):
    status, output = fresh.run(
        *(
            "rollout",
            "start",
            "arena",
            "--to",
            f"models:/{fresh.model}/2",
            "--steps",
            "20,100",
            "--every",
            "1s",
        ),
        *(
            "--abort-on",
            "error_rate>1%,disagreement>20%",
            "--min-requests",
            "20",
            "--why",
            "it is new",
            "--wait",
        ),
    )

    assert status == 0, output
    assert mentions(output, "version 1 → 2", "promoted")
    assert fresh.stages() == {"1": "Archived", "2": "Production", "3": "None", "4": "None"}
    assert fresh.variants() == {"arena": 100}
    wait_until(lambda: fresh.traffic.last_version == "2", PATIENCE, "version 2 answers")
    (start,), (end,) = fresh.events("rollout.start")[-1:], fresh.events("rollout.end")[-1:]
    assert start.version == "2"
    assert start.why == "it is new"
    assert start.after == "version 2 by 20 %, 100 %"
    assert end.version == "2"
    assert end.before == "version 1"
    assert end.after == "version 2"
    assert end.detail["criteria"]["error_rate>1%"]["figures"].startswith("0.00% of")
    assert [event.after for event in fresh.events("rollout.step")[-2:]] == ["20 %", "100 %"]

    status, output = fresh.run("rollback", "arena", "--why", "the phones ring")

    assert status == 0, output
    assert mentions(output, fresh.model, "1 instead of 2")
    assert mentions(output, "before version 2", "audit trail")
    assert fresh.stages() == {"1": "Production", "2": "Archived", "3": "None", "4": "None"}
    assert (
        requests.post(fresh.url, json={"inputs": [[0.0]]}, timeout=30).headers["X-Model-Version"]
        == "1"
    )
    assert mentions(fresh.tags("2")["onnxserve.rolled_back"], "arena", "the phones ring")
    (event,) = fresh.events("rollback")
    assert event.before == "version 2"
    assert event.after == "version 1"
    assert event.why == "the phones ring"


@pytest.mark.long
def test_a_rollback_ends_a_rollout_that_is_under_way_without_a_controller(fresh):
    with open_deployments(lambda line: None) as deployments:
        # The controller that should do the rollout is gone.
        start_rollout(deployments, "arena", RolloutRequest("2", why="it is new"))
    assert mentions(fresh.run("rollout", "status", "arena")[1], "version 1 → 2", "starting")
    status, output = fresh.run("rollout", "start", "arena", "--to", "2")
    assert (status, mentions(output, "onnxserve rollout abort arena")) == (1, True), output

    status, output = fresh.run("rollback", "arena", "--why", "second thoughts")

    assert status == 0, output
    assert mentions(output, "rollout", "was aborted")
    assert fresh.rollout().state == "rolled_back"
    assert fresh.rollout().reason.endswith(": second thoughts")
    assert fresh.variants() == {"arena": 100}
    assert fresh.stages()["1"] == "Production"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("start", "nowhere", "--to", "2"), "there is no endpoint 'nowhere'"),
        (("start", "arena", "--to", "9"), "has no version 9"),
        (("start", "arena", "--to", "1"), "already serves {model} version 1"),
        (("start", "arena", "--to", "models:/other/1"), "there is no registered model other"),
        (("pause", "arena"), "has no live rollout"),
        (("abort", "arena"), "has no live rollout"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_in_one_line(fresh, arguments, said):
    status, output = fresh.run("rollout", *arguments)

    assert status == 1
    assert said.format(model=fresh.model) in output
    assert len(output.strip().splitlines()) == 1


def test_a_version_that_lacks_the_required_gate_is_brought_neither_by_a_rollout_nor_by_a_rollback(
    fresh,
):
    client = get_deploy_client("onnxserve")
    pass_gate(fresh.model, "1")
    client.update_deployment("arena", config={"require": "gate=passed"})
    try:
        status, output = fresh.run("rollout", "start", "arena", "--to", "2")
        back_status, back_output = fresh.run("rollback", "arena", "--to", "2")
        stages = fresh.stages()
    finally:
        client.update_deployment("arena", config={"require": ""})

    assert status == 1
    assert mentions(output, "gate=passed", fresh.model, "version 2")
    assert fresh.variants() == {"arena": 100}
    assert back_status == 1
    assert mentions(back_output, "arena", "version 2", "could not be restored", "the gate")
    assert mentions(back_output, "version 1 was restored")
    assert stages["1"] == "Production"
    assert stages["2"] == "Archived"


@pytest.mark.long
@pytest.mark.parametrize("reference", ["@live", "/tag:team=blue", "/1"])
def test_a_rollout_and_a_rollback_move_an_alias_a_tag_and_a_pinned_version(fresh, reference):
    client = MlflowClient()
    client.set_registered_model_alias(fresh.model, "live", "1")
    client.set_model_version_tag(fresh.model, "1", "team", "blue")
    followed = f"models:/{fresh.model}{reference}"
    fresh.set_model(followed)
    try:
        arguments = (
            "rollout",
            "start",
            "arena",
            "--to",
            f"models:/{fresh.model}/2",
            "--steps",
            "100",
            "--every",
            "1s",
        )
        status, output = fresh.run(*arguments, "--min-requests", "20", "--wait")
        assert status == 0, output
        assert fresh.served() == (
            f"models:/{fresh.model}/2" if reference == "/1" else followed,
            "2",
        )

        status, output = fresh.run("rollback", "arena")
        assert status == 0, output
        assert fresh.served() == (followed, "1")
    finally:
        fresh.set_model(f"models:/{fresh.model}/Production")


@pytest.mark.long
def test_a_controller_that_is_killed_is_replaced_and_the_rollout_goes_on(fresh):
    both = [fresh.start("controller", "--lease-seconds", "3") for _ in range(2)]
    working = wait_until(
        lambda: next(filter(fresh.works, both), None), PATIENCE, "one does the rollouts"
    )
    (waiting,) = (controller for controller in both if controller is not working)
    fresh.begin_rollout("--to", "2", "--steps", "20,60,100", "--every", "3s")
    wait_until(lambda: fresh.rollout().step >= 1, PATIENCE, "the second step has begun")

    working.kill()
    wait_until(lambda: fresh.works(waiting), PATIENCE, "the other takes over")
    wait_until(lambda: not fresh.rollout().is_live, PATIENCE, "the rollout has ended")
    waiting.send_signal(signal.SIGTERM)

    assert waiting.wait(timeout=PATIENCE) == 0
    assert fresh.rollout().state == "promoted"
    assert fresh.variants() == {"arena": 100}
    number = fresh.rollout().id
    steps = [
        event.after for event in fresh.events("rollout.step") if event.detail["rollout"] == number
    ]
    assert steps == ["20 %", "60 %", "100 %"]
    assert [event.detail["rollout"] for event in fresh.events("rollout.end")].count(number) == 1


@pytest.mark.long
def test_a_rollout_survives_a_restart_of_the_server_in_its_middle(fresh):
    controller = fresh.start("controller", "--lease-seconds", "3")
    wait_until(lambda: fresh.works(controller), PATIENCE, "it works")
    fresh.begin_rollout("--to", "2", "--steps", "50,100", "--every", "3s")
    wait_until(
        lambda: fresh.variants().get("candidate") == 50, PATIENCE, "the first step has begun"
    )

    fresh.traffic.is_careless = True
    assert fresh.run("stop", "arena")[0] == 0
    wait_until(
        lambda: fresh.rollout().reason.startswith("waiting for the server"),
        PATIENCE,
        "it is noticed",
    )
    assert fresh.run("start", "arena")[0] == 0
    fresh.traffic.is_careless = False
    wait_until(lambda: not fresh.rollout().is_live, PATIENCE, "the rollout has ended")
    controller.send_signal(signal.SIGTERM)

    assert controller.wait(timeout=PATIENCE) == 0
    assert fresh.rollout().state == "promoted"
    assert fresh.stages()["2"] == "Production"


@pytest.mark.long
@pytest.mark.parametrize(
    ("version", "abort_on", "said"),
    [
        ("3", "disagreement>20%", "disagreement>20%: version 3 answers 100.00% of"),
        ("4", "error_rate>1%", "error_rate>1%: "),
    ],
)
def test_a_rollout_of_a_bad_version_rolls_back_by_itself(fresh, version, abort_on, said):
    status, output = fresh.run(
        *("rollout", "start", "arena", "--to", version, "--steps", "40,100", "--every", "5m"),
        *("--abort-on", abort_on, "--min-requests", "20", "--wait"),
    )

    assert status == 1
    assert mentions(output, f"version 1 → {version}", "rolled back")
    assert said in output
    assert fresh.stages()["1"] == "Production"
    assert fresh.variants() == {"arena": 100}
    assert fresh.tags(version)["onnxserve.rolled_back"].startswith(f"arena: {said}")
    (end,) = fresh.events("rollout.end")[-1:]
    assert end.version == version
    assert end.after == "version 1"
    assert end.why.startswith(said)
    counted = (
        end.detail["shadow"]["different"] if version == "3" else end.detail["candidate"]["requests"]
    )
    assert counted >= 20  # Disagreement is measured on compared rows.
