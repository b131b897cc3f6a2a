"""Tests of the conversion of an endpoint from a stage to an alias. No server is
started.
"""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from mlflow_deploy_plugin.core.errors import (
    AlreadyExists,
    DeploymentFailed,
    InvalidConfig,
    NotFound,
)
from mlflow_deploy_plugin.core.registry import transitions
from mlflow_deploy_plugin.core.registry.transitions import ROLLED_BACK_TAG
from mlflow_deploy_plugin.core.spec.document import add_variant, apply_config, new_endpoint
from mlflow_deploy_plugin.ship.deployments.backends.local import LocalBackend
from mlflow_deploy_plugin.ship.deployments.endpoints import Endpoints
from mlflow_deploy_plugin.ship.deployments.lifecycle import open_deployments
from tests.support.refusals import refused
from tests.support.registry_folder import RegistryFolder

STAGE = "models:/sum/Production"
ALIAS = "models:/sum@champion"


@pytest.fixture(scope="module")
def registry_folder(tmp_path_factory, new_database):
    prepared = RegistryFolder(tmp_path_factory.mktemp("registry"), new_database)
    with prepared.entered() as client:
        client.create_registered_model("sum")
        for _ in range(3):
            client.create_model_version("sum", str(prepared.folder))
        client.transition_model_version_stage("sum", "1", "Production")
        client.transition_model_version_stage("sum", "2", "Staging")
    prepared.keep()
    return prepared


@pytest.fixture
def registry(registry_folder):
    """A registry with the versions 1 (Production), 2 (Staging) and 3 of the model
    `sum`, which the test may change.
    """
    with registry_folder.restored() as client:
        yield client


@pytest.fixture
def applied(monkeypatch):
    """Return the specs that servers are to serve. No server is started."""
    specs = []

    def apply(_, spec, progress):
        specs.append(spec)
        return "http://127.0.0.1:1"

    monkeypatch.setattr(LocalBackend, "apply", apply)
    return specs


@pytest.fixture
def deployments(registry, applied):
    """Return deployments with the endpoint `sums`, whose deployment `main` follows
    Production.
    """
    with open_deployments(lambda line: None) as opened:
        spec = apply_config(new_endpoint("sums", STAGE, variant="main"), {"server.port": 8123})
        opened.store.add_endpoint("onnxserve", spec)
        yield opened


def aliases(registry):
    """Return the aliases. MLflow returns numbers from a database, and texts from a
    server.
    """
    return {
        alias: str(version)
        for alias, version in registry.get_registered_model("sum").aliases.items()
    }


def models(deployments):
    stored = deployments.store.require_endpoint("sums")
    return {name: variant.model for name, variant in stored.spec.variants.items()}


def change(deployments, changed):
    deployments.store.replace_spec(changed(deployments.store.require_endpoint("sums").spec))


def test_deployment_of_a_stage_follows_the_new_alias(deployments, registry, applied):
    (follower,) = deployments.follow_alias("sums", "champion", why="stages end")

    assert follower.deployment == "main"
    assert follower.stage_uri == STAGE
    assert follower.alias_uri == ALIAS
    assert follower.version == "1"
    assert aliases(registry) == {"champion": "1"}
    assert (
        models(deployments)
        == {"main": ALIAS}
        == {name: v.model for name, v in applied[-1].variants.items()}
    )
    (event,) = [event for event in deployments.store.events("sums") if event.action != "create"]
    assert event.action == "follow"
    assert event.why == "stages end"
    assert event.detail["stages"] == {"main": "Production"}
    assert event.before == f"main {STAGE} 100"
    assert event.after == f"main {ALIAS} 100"


@pytest.mark.parametrize("step", ["alias", "spec", "server"])
def test_killed_conversion_is_completed_by_next_call(
    step, deployments, registry, applied, monkeypatch
):
    def die(*_, **__):
        raise SystemError(step)  # Stands for a killed process.

    with monkeypatch.context() as patch:
        match step:
            case "alias":
                patch.setattr(transitions, "registry_client", die)
            case "spec":
                patch.setattr(type(deployments.store), "replace_spec", die)
            case "server":

                def die_without_restoring(*_):
                    patch.setattr(type(deployments.store), "endpoint", lambda *_: None)
                    die()

                patch.setattr(Endpoints, "_serve", die_without_restoring)
        with pytest.raises(SystemError):
            deployments.follow_alias("sums", "champion")
    deployments.follow_alias("sums", "champion")

    assert aliases(registry) == {"champion": "1"}
    assert models(deployments) == {"main": ALIAS}
    assert applied[-1].variants["main"].model == ALIAS
    assert [event.action for event in deployments.store.events("sums")] == ["create", "follow"]
    assert deployments.follow_alias("sums", "champion") == []


def test_failed_server_change_is_undone(deployments, monkeypatch):
    def fail(*_):
        raise DeploymentFailed("sums: the server has ended")

    monkeypatch.setattr(LocalBackend, "apply", fail)
    with refused(DeploymentFailed, "sums"):
        deployments.follow_alias("sums", "champion")
    assert models(deployments) == {"main": STAGE}


def test_alias_refused_by_the_gate_changes_nothing(deployments, monkeypatch):
    def refuse(*_):
        raise MlflowException(
            "version 1 of sum may not become @champion: no gate", error_code=PERMISSION_DENIED
        )

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", refuse)
    with refused(InvalidConfig, "MLflow", "@champion", "sum version 1", "no gate"):
        deployments.follow_alias("sums", "champion")
    assert models(deployments) == {"main": STAGE}


def test_rolled_back_version_keeps_its_tag(deployments, registry):
    registry.set_model_version_tag("sum", "1", ROLLED_BACK_TAG, "sums: too slow")
    deployments.follow_alias("sums", "champion")
    assert ROLLED_BACK_TAG in registry.get_model_version("sum", "1").tags


def test_several_deployments_have_separate_aliases(deployments, registry):
    change(deployments, lambda spec: add_variant(spec, "next", "models:/sum/Staging"))
    change(deployments, lambda spec: add_variant(spec, "pinned", "models:/sum/3"))
    with refused(
        InvalidConfig, ALIAS, "version 1", "version 2", "'main'", "'next'", "--deployment"
    ):
        deployments.follow_alias("sums", "champion")
    assert aliases(registry) == {}

    deployments.follow_alias("sums", "champion", "main")
    deployments.follow_alias("sums", "challenger", "next")

    assert models(deployments) == {
        "main": ALIAS,
        "next": "models:/sum@challenger",
        "pinned": "models:/sum/3",
    }
    assert aliases(registry) == {"champion": "1", "challenger": "2"}


def _pin(deployments, registry):
    change(deployments, lambda spec: apply_config(spec, {"variants.main.model": "models:/sum/3"}))


def _archive(deployments, registry):
    registry.transition_model_version_stage("sum", "1", "Archived")


def _start_rollout(deployments, registry):
    deployments.store.add_rollout("sums", {}, "stepping")


def _give_alias_away(deployments, registry):
    registry.set_registered_model_alias("sum", "champion", "3")


def _keep(deployments, registry):
    """Change nothing before the call."""


@pytest.mark.parametrize(
    ("before", "arguments", "error", "names"),
    [
        (_keep, ("smus", "champion"), NotFound, ["'smus'", "'sums'"]),
        (_keep, ("sums", "champion", "mian"), NotFound, ["'mian'", "'main'"]),
        (_keep, ("sums", "latest"), InvalidConfig, ["@latest", "sum version 1", "reserved"]),
        (_pin, ("sums", "champion"), InvalidConfig, ["'sums'", "'main'", "models:/sum/3"]),
        (_archive, ("sums", "champion"), NotFound, ["model sum", "Production", "1 (Archived)"]),
        (_start_rollout, ("sums", "champion"), AlreadyExists, ["'sums'", "rollout", "abort"]),
        (
            _give_alias_away,
            ("sums", "champion"),
            InvalidConfig,
            [
                ALIAS,
                "version 3",
                STAGE,
                "version 1",
                "`onnxserve promote models:/sum/1 --to @champion`",
                "--alias",
            ],
        ),
    ],
)
def test_impossible_conversion_is_refused(
    before, arguments, error, names, deployments, registry, applied
):
    before(deployments, registry)
    earlier = models(deployments)
    with refused(error, *names) as raised:
        deployments.follow_alias(*arguments)
    assert "\n" not in str(raised.value)
    assert models(deployments) == earlier
    assert applied == []
