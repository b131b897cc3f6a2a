"""Tests of the agent's fetch from a server with accounts: it loads only the files that
people have approved.
"""

from pathlib import Path

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.cli.commands import main
from mlflow_deploy_plugin.core.errors import GateRefused
from mlflow_deploy_plugin.core.registry.approved_files import approval_of, changed_files
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.watch.controller.service import announce_changes_of_files
from tests.support.accounts import people
from tests.support.classifiers import write_classifier
from tests.support.refusals import mentions

POLICY = (
    "gated_aliases: [champion]\n"
    "skip: [evaluation, robustness, budget]\n"
    "approvals: {count: 1, evaluation: optional}"
)
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server(tmp_path_factory, new_database):
    with people(tmp_path_factory.mktemp("approved"), new_database, "alice") as login_server:
        yield login_server


def run(server, user, line):
    with server.logged_in(user):
        result = CliRunner().invoke(main, line.split())
    assert result.exit_code == 0, result.output


def promoted(server):
    """Register a model whose version 1 is approved and promoted,
    and return its name.
    """
    model = server.register("alice", POLICY)
    run(server, "alice", f"promote models:/{model}/1 --to @champion --request")
    run(server, "admin", f"request approve models:/{model}/1 --to @champion")
    run(server, "alice", f"promote models:/{model}/1 --to @champion --wait 0")
    return model


def agent(folder):
    """Return the registry of an agent on a machine with an empty cache."""
    return MlflowRegistry(ModelCache(folder / "cache", folder / "state"))


def test_an_approved_version_is_loaded_only_with_the_approved_files(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        assert approval_of(model, "1").files == (approved,)
        first = agent(tmp_path / "first")
        assert first.fetch(resolve(f"models:/{model}@champion")).digest == approved

        run_id = client.get_model_version(model, "1").run_id
        other = write_classifier(tmp_path / "other", (9.0, 9.0))
        client.log_artifacts(run_id, str(other), "model")
        replaced = version_digest(f"models:/{model}/1")
        with pytest.raises(MlflowException, match=r"PERMISSION_DENIED.*onnxserve\.gate\.digest"):
            client.set_model_version_tag(model, "1", "onnxserve.gate.digest", replaced)

        for uri in (f"models:/{model}@champion", f"models:/{model}/1"):
            with pytest.raises(GateRefused) as refused:
                agent(tmp_path / "second").fetch(resolve(uri))
            assert mentions(refused.value.message, "differ", approved[:12], replaced[:12])
        # From the cache.
        assert first.fetch(resolve(f"models:/{model}@champion")).digest == approved


def test_a_version_whose_files_are_approved_again_is_loaded_with_its_new_files(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        other = write_classifier(tmp_path / "other", (9.0, 9.0))
        client.log_artifacts(client.get_model_version(model, "1").run_id, str(other), "model")
        replaced = version_digest(f"models:/{model}/1")
    run(server, "alice", f"promote models:/{model}/1 --to @champion --request")
    run(server, "admin", f"request approve models:/{model}/1 --to @champion")
    run(server, "alice", f"promote models:/{model}/1 --to @champion --wait 0")
    with server.logged_in("alice"):
        assert approval_of(model, "1").files == (replaced,)
        assert agent(tmp_path).fetch(resolve(f"models:/{model}@champion")).digest == replaced


def test_other_files_are_not_loaded_after_the_request_for_the_approved_files_has_ended(
    server, tmp_path
):
    model = server.register("alice", POLICY)
    run(server, "alice", f"promote models:/{model}/1 --to @champion --request")
    run(server, "admin", f"request approve models:/{model}/1 --to @champion")
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        other = write_classifier(tmp_path / "other", (9.0, 9.0))
        client.log_artifacts(client.get_model_version(model, "1").run_id, str(other), "model")
    run(server, "alice", f"promote models:/{model}/1 --to @champion --request")
    with server.logged_in("alice"):
        assert approval_of(model, "1").files == ()
        with pytest.raises(GateRefused) as refused:
            agent(tmp_path).fetch(resolve(f"models:/{model}/1"))
    assert mentions(refused.value.message, "differ", approved[:12])


def test_refused_files_are_downloaded_again_after_growing_pauses_or_a_new_approval(
    server, tmp_path
):
    model = promoted(server)
    now = [0.0]
    cache = ModelCache(tmp_path / "cache", tmp_path / "state")
    registry = MlflowRegistry(cache, clock=lambda: now[0])
    with server.logged_in("alice") as client:
        run_id = client.get_model_version(model, "1").run_id
        approved = Path(client.download_artifacts(run_id, "model", str(tmp_path)))
        client.log_artifacts(run_id, str(write_classifier(tmp_path / "other", (9.0, 9.0))), "model")

        def is_refused():
            try:
                registry.fetch(resolve(f"models:/{model}/1"))
            except GateRefused:
                return True
            return False

        assert is_refused()
        now[0] = 60.0
        assert is_refused()
        client.log_artifacts(run_id, str(approved), "model")
        now[0] = 120.0
        assert is_refused()  # The restored files are not downloaded yet.
        now[0] = 180.0
        assert not is_refused()


def test_changed_files_of_a_version_in_a_gated_place_are_an_alert(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        other = write_classifier(tmp_path / "other", (9.0, 9.0))
        client.log_artifacts(client.get_model_version(model, "1").run_id, str(other), "model")
        now = version_digest(f"models:/{model}/1")
        (changed,) = (entry for entry in changed_files() if entry.model == model)
        assert changed.version == "1"
        assert changed.place == "@champion"
        assert changed.recorded == approved
        assert changed.now == now
        for _ in range(2):
            announce_changes_of_files(server.store)
    alerts = [
        alert
        for alert in Alerts(server.store).recent()
        if alert.endpoint == model and "files/" in alert.fingerprint
    ]
    assert len(alerts) == 1
    assert mentions(alerts[0].detail["lines"][0], model, "version 1", "@champion", now[:12])


def test_an_alias_does_not_return_to_a_version_whose_files_were_replaced(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        run_id = client.get_model_version(model, "1").run_id
        client.log_artifacts(
            run_id, str(write_classifier(tmp_path / "second", (3.0, 3.0))), "second"
        )
        client.create_model_version(
            model, f"{client.get_run(run_id).info.artifact_uri}/second", run_id
        )
    run(server, "alice", f"promote models:/{model}/2 --to @champion --request")
    run(server, "admin", f"request approve models:/{model}/2 --to @champion")
    run(server, "alice", f"promote models:/{model}/2 --to @champion --wait 0")
    with server.logged_in("alice") as client:
        approved = client.download_artifacts(run_id, "model", str(tmp_path))
        client.log_artifacts(run_id, str(write_classifier(tmp_path / "third", (9.0, 9.0))), "model")
        with pytest.raises(
            MlflowException, match=r"PERMISSION_DENIED.*version 1.*may not return.*differ"
        ):
            client.set_registered_model_alias(model, "champion", "1")
        client.log_artifacts(run_id, approved, "model")
        client.set_registered_model_alias(model, "champion", "1")
        assert client.get_model_version_by_alias(model, "champion").version == "1"


def test_a_version_without_approval_is_not_loaded_for_a_gated_alias(server, tmp_path):
    """The alias is moved in MLflow's database, without the server."""
    model = server.register("alice", POLICY)
    database = f"sqlite:///{server.server.folder}/mlflow.db"
    MlflowClient(registry_uri=database, tracking_uri=database).set_registered_model_alias(
        model, "champion", "1"
    )
    with server.logged_in("alice"):
        fetched = agent(tmp_path).fetch(resolve(f"models:/{model}@champion"))
    assert fetched.unapproved_at == ("@champion", "Production")
