"""The earlier version of an endpoint, from the most reliable source that has it. Its
server is not running.
"""

from dataclasses import replace

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import DeploymentFailed, InvalidConfig, NotFound, Refused
from mlflow_deploy_plugin.core.settings import load_settings
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.core.statedir.models import LoadedVariant, RefusedVersion, WorkerState
from mlflow_deploy_plugin.core.store.audit import move_detail
from mlflow_deploy_plugin.promote.rollouts.commands import (
    RolloutRequest,
    command_rollout,
    start_rollout,
)
from mlflow_deploy_plugin.promote.rollouts.controller import RolloutActions
from mlflow_deploy_plugin.promote.rollouts.rollback import rollback
from mlflow_deploy_plugin.promote.rollouts.state_machine import Progress
from mlflow_deploy_plugin.ship.deployments.backends.targets import Observation
from mlflow_deploy_plugin.ship.deployments.endpoints import ObservedEndpoint
from mlflow_deploy_plugin.ship.deployments.lifecycle import Deployments, open_deployments
from mlflow_deploy_plugin.ship.deployments.server_metrics import (
    ServerMetrics,
    VersionCounters,
)
from tests.support.audit_trail import store_of_server
from tests.support.commands import onnxserve
from tests.support.refusals import mentions, refused
from tests.support.registry_folder import RegistryFolder
from tests.support.rollouts import PLAN
from tests.support.stores import own_store


@pytest.fixture(scope="module")
def registry_folder(tmp_path_factory, new_database):
    """A registry whose versions 2, 1 and 3 of the model `delay` were in Production one
    after the other, and had the alias.
    """
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    with prepared.entered() as client:
        client.create_registered_model("delay")
        for _ in range(3):
            client.create_model_version("delay", "s3://nowhere/model")
        for version in ("2", "1", "3"):
            client.transition_model_version_stage(
                "delay", version, "Production", archive_existing_versions=True
            )
            client.set_registered_model_alias("delay", "live", version)
        with own_store():
            pass
    prepared.keep()
    return prepared


@pytest.fixture
def store(registry_folder):
    with registry_folder.restored(), own_store() as opened:
        yield opened


def roll_back(endpoint, **asked):
    with open_deployments(print) as deployments:
        return rollback(deployments, endpoint, **asked)


def serve(store, uri="models:/delay/Production"):
    """Add the endpoint flights, which follows the URI."""
    store.add_endpoint("onnxserve", new_endpoint("flights", uri))


def stage(version):
    return str(MlflowClient().get_model_version("delay", version).current_stage)


def test_version_archived_last_is_restored(store):
    serve(store)

    done = roll_back("flights", why="too slow", actor="ada@laptop")

    assert done["model"] == "delay"
    assert done["from"] == "3"
    assert done["to"] == "1"
    assert mentions(done["source"], "archived", "the registry")
    assert stage("1") == "Production"
    assert stage("3") == "Archived"
    tags = MlflowClient().get_model_version("delay", "3").tags
    assert tags["onnxserve.rolled_back"] == "flights: too slow"
    event = next(store.events("flights", newest_first=True))
    assert event.action == "rollback"
    assert event.before == "version 3"
    assert event.after == "version 1"
    assert event.why == "too slow"
    assert event.model == "delay"
    assert event.actor == "ada@laptop"
    assert event.detail["source"] == done["source"]


@pytest.mark.parametrize(
    ("served", "options", "change"),
    [
        (
            "models:/delay/Production",
            [],
            "models:/delay/Production would go from version 3 to version 1",
        ),
        (
            "models:/delay@live",
            ["--to", "2"],
            "models:/delay@live would go from version 3 to version 2",
        ),
        (
            "models:/delay/3",
            ["--to", "1"],
            "delay would go from models:/delay/3 to models:/delay/1",
        ),
    ],
)
def test_dry_run_names_versions_and_followers(store, served, options, change):
    uri = served
    store.add_endpoint("onnxserve", new_endpoint("flights", uri))
    store.add_endpoint("onnxserve", new_endpoint("taxis", uri))
    events = [*store.events()]

    done = onnxserve("rollback flights --dry-run", *options)

    assert done.exit_code == 0, done.output
    line, *followers = done.stdout.splitlines()
    assert line.startswith(f"flights: {change}; ")
    assert followers == (
        [f"  deployments that follow {uri}: flights/flights, taxis/taxis"]
        if "version" in change
        else []
    )
    assert stage("3") == "Production"
    assert MlflowClient().get_registered_model("delay").aliases["live"] == 3
    assert [*store.events()] == events


def test_version_last_seen_by_servers_is_restored(store):
    store.add_endpoint(
        "onnxserve:/kubernetes/ml", new_endpoint("flights", "models:/delay/Production")
    )

    class Counted(Deployments):
        def server_metrics(self, observed, timeout_seconds=0):
            def answered(version, at):
                key = ("flights", "flights", "delay", version)
                return ServerMetrics(
                    {key: VersionCounters(requests=1)}, {("flights", "delay", version): at}
                )

            return {
                "f-1": answered("3", 300),
                "f-2": answered("2", 200),
                "f-3": Refused("no command can be run there"),
            }

    done = rollback(Counted(store, load_settings(), print), "flights")

    assert done["to"] == "2"
    assert mentions(done["source"], "version 3", "the server", "version 1")


def test_moves_of_other_stages_are_ignored(store):
    serve(store)
    for stage_moved_to, stood in (("Production", "2"), ("Staging", "1")):
        store.record(
            "transition", model="delay", version="3", detail=move_detail(stage_moved_to, stood)
        )

    done = roll_back("flights")

    assert done["to"] == "2"
    assert mentions(done["source"], "version 3", "the audit trail")


def test_alias_falls_back_to_its_former_stage(store):
    serve(store, "models:/delay@live")
    store.record("promote", model="delay", version="3", detail=move_detail("Production", "2"))
    store.record("follow", endpoint="flights", detail={"stages": {"flights": "Production"}})
    store.record("promote", model="delay", version="3", detail=move_detail("Production", "1"))

    done = roll_back("flights")

    assert done["to"] == "2"
    assert mentions(done["source"], "version 3", "the audit trail")


@pytest.mark.parametrize(
    ("action", "endpoint", "to"),
    [("rollout.end", "flights", "2"), ("rollback", "flights", "2"), ("rollout.end", "prices", "1")],
)
def test_rollout_counts_for_its_own_endpoint(store, action, endpoint, to):
    serve(store)
    store.record(action, endpoint=endpoint, model="delay", version="3", detail=move_detail("", "2"))

    assert roll_back("flights")["to"] == to


@pytest.mark.parametrize("action", ["rename", "delete"])
def test_trail_of_a_former_namesake_is_ignored(store, action):
    serve(store)
    store.record("promote", model="delay", version="3", detail=move_detail("Production", "2"))
    store.record(action, model="delay")

    assert roll_back("flights")["to"] == "1"


def test_tampered_moves_are_ignored(store, tmp_path):
    serve(store)
    with store_of_server(str(store._engine.url), tmp_path) as server:
        moved = move_detail("Production", "2")
        server.record("transition", model="delay", version="3", detail=moved)
    forged = move_detail("Production", "1")
    store.record("transition", model="delay", version="3", detail=forged)

    assert roll_back("flights")["to"] == "2"


def by_hand(store, *moves):
    """Return the history of the alias in MLflow's server: the new and the previous
    version of each change.
    """
    for version, stood in moves:
        store.record(
            "alias",
            model="delay",
            version=version or stood,
            detail=move_detail("@live", stood) if version else {},
        )


@pytest.mark.parametrize(
    ("moves", "served"),
    [
        ([("1", ""), ("2", "1"), ("3", "2"), ("2", "3"), ("3", "2")], "2"),
        ([("3", "2"), ("2", "3"), ("1", "2"), ("3", "1")], "1"),
        # The alias was deleted and set again.
        ([("3", "2"), ("1", "3"), ("", "1"), ("3", "")], "1"),
        ([("3", "1"), ("2", "3"), ("", "2"), ("3", "")], "2"),
        ([("3", "1"), ("2", "3")], "2"),  # A later change to version 3 was not recorded.
        ([("1", ""), ("3", "")], "1"),
    ],
)
def test_alias_returns_to_its_previous_holder(store, moves, served):
    serve(store, "models:/delay@live")
    by_hand(store, *moves)

    done = roll_back("flights")

    assert done["from"] == "3"
    assert done["to"] == served
    assert mentions(done["source"], "version 3", "the audit trail")


def test_emptied_stage_returns_to_its_last_version(store):
    serve(store)
    for version, place, stood in (
        ("3", "Production", "1"),
        ("2", "Production", "3"),
        ("2", "Archived", ""),
        ("3", "Production", ""),
    ):
        store.record("transition", model="delay", version=version, detail=move_detail(place, stood))

    assert roll_back("flights")["to"] == "2"


def test_promotion_clears_the_rolled_back_tag(store):
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/delay/3"))
    MlflowClient().set_model_version_tag("delay", "3", "onnxserve.rolled_back", "flights: too slow")
    uri = "models:/delay/3"
    plan = replace(
        PLAN, main="flights", kind="pinned", model="delay", version="3", to_uri=uri, before_uri=uri
    )

    with open_deployments(print) as deployments:
        for version in ("3", "4"):  # The fourth version was deleted.
            actions = RolloutActions(deployments, "controller@here", print)
            actions.do("finish", replace(plan, version=version), Progress("promoting"))

    assert "onnxserve.rolled_back" not in MlflowClient().get_model_version("delay", "3").tags


def test_version_rolled_back_once_is_skipped(store):
    serve(store)

    assert [roll_back("flights")["to"] for _ in range(2)] == ["1", "2"]
    with refused(NotFound, "MLflow", "version 2 of delay", "--to VERSION`"):
        roll_back("flights")


def test_alias_without_history_needs_a_target(store):
    serve(store, "models:/delay@live")

    with pytest.raises(NotFound, match="--to VERSION`"):
        roll_back("flights")
    with refused(InvalidConfig, "version 3", "already"):
        roll_back("flights", to="3")
    done = roll_back("flights", to="2")

    assert done["to"] == "2"
    assert done["source"] == "requested by the user"
    assert str(MlflowClient().get_registered_model("delay").aliases["live"]) == "2"


def test_just_finished_promotion_is_rolled_back(store, monkeypatch):
    serve(store)
    begun = store.add_rollout("flights", PLAN.to_json(), "promoting")
    read = store.rollouts

    def ends_after_the_first_look(*asked, **more):
        rollouts = read(*asked, **more)
        store.update_rollout(replace(begun, state="promoted", ended_at=begun.created_at), None)
        return rollouts

    monkeypatch.setattr(store, "rollouts", ends_after_the_first_look)

    done = rollback(Deployments(store, load_settings(), print), "flights")

    assert done["from"] == "3"
    assert done["to"] == "1"


@pytest.mark.parametrize("to", ["2", "models:/delay/2"])
def test_target_is_a_number_or_uri(store, to):
    serve(store)

    with refused(InvalidConfig, "delay", "versions", "6"):
        roll_back("flights", to="models:/other/2")
    assert roll_back("flights", to=to)["to"] == "2"


def test_ungated_version_is_not_served_instead(store, monkeypatch):
    """The agent of the running server has refused the version, which needs the gate."""
    uri = "models:/delay/Production"
    store.add_endpoint("onnxserve", new_endpoint("flights", uri, {"require": "gate=passed"}))
    loaded = {"flights": {"flights": LoadedVariant(version="3")}}
    refusal = RefusedVersion(
        endpoint="flights",
        variant="flights",
        model="delay",
        version="2",
        cause="gate",
        reason="not judged",
    )
    worker = WorkerState(pid=1, generation=1, endpoints=loaded)
    observation = Observation("running", workers=(worker,), refused=(refusal,))
    observed = ObservedEndpoint(store.endpoint("flights"), observation)
    monkeypatch.setattr(Deployments, "get_endpoint", lambda *_: observed)

    with refused(DeploymentFailed, "version 2", "not judged", "version 3 was restored"):
        roll_back("flights", to="2")
    assert stage("3") == "Production"
    with refused(InvalidConfig, "gate=passed", "delay", "version 2"):
        start_rollout(Deployments(store, load_settings(), print), "flights", RolloutRequest("2"))


@pytest.fixture
def pinned(store):
    """Roll back an endpoint that follows nothing. Only the stored spec changes, because
    no server runs.
    """

    class Written(Deployments):
        def update_endpoint(
            self,
            endpoint,
            config,
            why="",
            actor=None,
            restores=False,
        ):
            stored = self.store.endpoint(endpoint)
            assert stored is not None
            self.progress(f"restores={restores}")
            self.store.replace_spec(apply_config(stored.spec, config), why=why)

    return lambda **asked: rollback(Written(store, load_settings(), print), "flights", **asked)


def give(store, model_uri):
    store.replace_spec(new_endpoint("flights", model_uri))


def test_pinned_endpoint_returns_to_earlier_models(store, pinned):
    serve(store, "models:/X/1")
    give(store, "models:/X/2")

    assert (done := pinned())["to"] == "models:/X/1", done
    with pytest.raises(NotFound, match="no earlier model"):
        pinned()  # The model that was rolled back is not restored.
    give(store, "models:/X/2")  # The model that was rolled back is deployed again.
    give(store, "models:/X/3")
    assert pinned()["to"] == "models:/X/2"
    assert pinned(to="1")["to"] == "models:/X/1"
    with pytest.raises(InvalidConfig, match="already serves models:/X/1"):
        pinned(to="models:/X/1")


def test_only_the_previous_version_needs_no_approval(store, pinned, capsys):
    serve(store, "models:/X/1")
    give(store, "models:/X/2")
    pinned()
    pinned(to="3")
    assert capsys.readouterr().out.split() == ["restores=True", "restores=False"]


@pytest.mark.parametrize(
    ("weight", "unapproved", "is_undone", "restores"),
    [
        (0, [], False, False),
        (5, [], False, True),
        (5, ["models:/X/6"], False, False),
        (5, [], True, False),
    ],
)
def test_model_without_earlier_traffic_needs_an_approval(
    weight, unapproved, is_undone, restores, store, pinned, capsys
):
    spec = add_variant(new_endpoint("flights", "models:/X/4"), "trial", "models:/X/6")
    store.add_endpoint("onnxserve", spec)
    answers = [{"model_uri": model_uri} for model_uri in unapproved]
    store.replace_spec(apply_config(spec, {"variants.trial.weight": weight}), unapproved=answers)
    if is_undone:
        store.replace_spec(spec, detail={"undone": True})
    approved = apply_config(spec, {"variants.trial.model": "models:/X/5"})
    store.replace_spec(approved)
    store.replace_spec(
        apply_config(approved, {"variants.flights.weight": 0, "variants.trial.weight": 100})
    )

    assert pinned()["to"] == "models:/X/6"
    assert capsys.readouterr().out.split() == [f"restores={restores}"]


def test_models_of_a_deleted_namesake_are_ignored(store, pinned):
    serve(store, "models:/X/1")
    store.remove_endpoint("flights")
    store.add_endpoint("onnxserve", new_endpoint("flights", "models:/Y/2"))

    with pytest.raises(NotFound, match="--to MODEL`"):
        pinned()


def test_two_answering_deployments_need_a_choice(store):
    spec = new_endpoint("flights", "models:/delay/Production")
    store.add_endpoint(
        "onnxserve", apply_config(add_variant(spec, "new", "m"), {"variants.new.weight": 50})
    )

    with refused(InvalidConfig, "flights and new"):
        roll_back("flights")


def test_rollout_of_a_deleted_endpoint_can_be_aborted(store):
    store.add_rollout("flights", PLAN.to_json(), "starting")

    message = command_rollout(
        Deployments(store, load_settings(), print), "flights", "abort", actor="ada@laptop"
    )

    assert mentions(message, "flights", "6 → 7", "abandoned", "ada@laptop")
    assert store.rollouts("flights", live=True) == []


def test_unknown_endpoint_is_refused(store):
    with refused(NotFound, "no endpoint", "'flights'"):
        roll_back("flights")
