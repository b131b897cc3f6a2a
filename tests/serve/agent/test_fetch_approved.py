"""Tests of the agent's fetch from a server with accounts: it loads only the files that
people have approved.
"""

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from mlflow_deploy_plugin.core.errors import GateRefused
from mlflow_deploy_plugin.core.registry.approved_files import approval_of, changed_files
from mlflow_deploy_plugin.core.registry.model_files import version_digest
from mlflow_deploy_plugin.core.registry.resolution import resolve
from mlflow_deploy_plugin.core.store.alerts import Alerts
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache
from mlflow_deploy_plugin.watch.controller.service import announce_changes_of_files
from tests.support.accounts import people
from tests.support.classifiers import write_classifier
from tests.support.commands import done
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


def run(server, user, *lines):
    with server.logged_in(user):
        for line in lines:
            done(line)


def request(server, model, version="1"):
    run(server, "alice", f"promote models:/{model}/{version} --to @champion --request")


def promote(server, model, version="1"):
    """Request the promotion, approve it as another user, and execute it."""
    request(server, model, version)
    run(server, "admin", f"request approve models:/{model}/{version} --to @champion")
    run(server, "alice", f"promote models:/{model}/{version} --to @champion --wait 0")


def promoted(server):
    """Register a model whose version 1 is approved and promoted,
    and return its name.
    """
    model = server.register("alice", POLICY)
    promote(server, model)
    return model


def replace_files(client, model, folder):
    """Replace the files of version 1 by those of another classifier."""
    other = write_classifier(folder / "other", (9.0, 9.0))
    client.log_artifacts(client.get_model_version(model, "1").run_id, str(other), "model")
    return version_digest(f"models:/{model}/1")


def agent(folder):
    """Return the registry of an agent on a machine with an empty cache."""
    return MlflowRegistry(ModelCache(folder / "cache", folder / "state"))


def test_only_the_approved_files_are_loaded(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        assert approval_of(model, "1").files == (approved,)
        first = agent(tmp_path / "first")
        assert first.fetch(resolve(f"models:/{model}@champion")).digest == approved

        replaced = replace_files(client, model, tmp_path)
        with pytest.raises(MlflowException, match=r"PERMISSION_DENIED.*onnxserve\.gate\.digest"):
            client.set_model_version_tag(model, "1", "onnxserve.gate.digest", replaced)

        for uri in (f"models:/{model}@champion", f"models:/{model}/1"):
            with pytest.raises(GateRefused) as refused:
                agent(tmp_path / "second").fetch(resolve(uri))
            assert mentions(refused.value.message, "differ", approved[:12], replaced[:12])
        # From the cache.
        assert first.fetch(resolve(f"models:/{model}@champion")).digest == approved

    promote(server, model)
    with server.logged_in("alice"):
        assert approval_of(model, "1").files == (replaced,)
        assert first.fetch(resolve(f"models:/{model}@champion")).digest == replaced


def test_changed_files_need_a_new_approval(server, tmp_path):
    model = server.register("alice", POLICY)
    request(server, model)
    run(server, "admin", f"request approve models:/{model}/1 --to @champion")
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        replace_files(client, model, tmp_path)
    request(server, model)
    with server.logged_in("alice"):
        assert approval_of(model, "1").files == ()
        with pytest.raises(GateRefused) as refused:
            agent(tmp_path).fetch(resolve(f"models:/{model}/1"))
    assert mentions(refused.value.message, "differ", approved[:12])


def test_files_changed_in_a_gated_place_are_alerted(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        approved = version_digest(f"models:/{model}/1")
        now = replace_files(client, model, tmp_path)
        (changed,) = (entry for entry in changed_files() if entry.model == model)
        place = (changed.version, changed.place, changed.recorded, changed.now)
        assert place == ("1", "@champion", approved, now)
        for _ in range(2):
            announce_changes_of_files(server.store)
    (alert,) = [
        alert
        for alert in Alerts(server.store).recent()
        if alert.endpoint == model and "files/" in alert.fingerprint
    ]
    assert mentions(alert.detail["lines"][0], model, "version 1", "@champion", now[:12])


def test_alias_cannot_return_to_replaced_files(server, tmp_path):
    model = promoted(server)
    with server.logged_in("alice") as client:
        run_id = client.get_model_version(model, "1").run_id
        second = write_classifier(tmp_path / "second", (3.0, 3.0))
        client.log_artifacts(run_id, str(second), "second")
        client.create_model_version(
            model, f"{client.get_run(run_id).info.artifact_uri}/second", run_id
        )
    promote(server, model, "2")
    with server.logged_in("alice") as client:
        approved = client.download_artifacts(run_id, "model", str(tmp_path))
        replace_files(client, model, tmp_path)
        with pytest.raises(
            MlflowException, match=r"PERMISSION_DENIED.*version 1.*may not return.*differ"
        ):
            client.set_registered_model_alias(model, "champion", "1")
        client.log_artifacts(run_id, approved, "model")
        client.set_registered_model_alias(model, "champion", "1")
        assert client.get_model_version_by_alias(model, "champion").version == "1"


def test_unapproved_version_at_a_gated_alias_is_marked(server, tmp_path):
    """The alias is moved in MLflow's database, without the server."""
    model = server.register("alice", POLICY)
    database = f"sqlite:///{server.server.folder}/mlflow.db"
    MlflowClient(registry_uri=database, tracking_uri=database).set_registered_model_alias(
        model, "champion", "1"
    )
    with server.logged_in("alice"):
        fetched = agent(tmp_path).fetch(resolve(f"models:/{model}@champion"))
    assert fetched.unapproved_at == ("@champion", "Production")
