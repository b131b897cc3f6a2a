"""Tests of `onnxserve promote --to-registry` and `--to-model`, between two MLflow
servers with two stores.
"""

import hashlib
import itertools
import json
import os
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput

from mlflow_deploy_plugin.core.store.database import open_store
from tests.support.classifiers import COLUMNS, labelled, write_classifier
from tests.support.commands import done, onnxserve, said
from tests.support.refusals import mentions
from tests.support.services.basic_auth import basic_auth_server, password
from tests.support.services.mlflow_server import MlflowServer
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at

pytestmark = pytest.mark.long

STATE = "passed without an evaluation"
POLICY = "skip: [evaluation, robustness, budget]\n"
_numbers = itertools.count(1)


@dataclass
class Registry:
    """An MLflow server with onnxserve's app and its store."""

    server: MlflowServer

    @property
    def client(self):
        return MlflowClient(self.server.url)

    @property
    def store_uri(self):
        return f"sqlite:///{self.server.folder / 'home' / 'onnxserve.db'}"

    def events(self, model, *actions):
        with closing(open_store(self.store_uri)) as store:
            return [*store.events(model=model, actions=actions)]

    def versions(self, model):
        entries = self.client.search_model_versions(f"name = '{model}'")
        return [self.client.get_model_version(model, entry.version) for entry in reversed(entries)]

    def runs(self, model):
        experiment = self.client.get_experiment_by_name(f"onnxserve/{model}")
        all_runs = self.client.search_runs([experiment.experiment_id]) if experiment else []
        return [run.info.run_id for run in all_runs if "onnxserve.copied_from" in run.data.tags]

    def files(self, model, version, folder):
        with tracking_at(self.server.url):
            import mlflow

            path = Path(
                mlflow.artifacts.download_artifacts(
                    f"models:/{model}/{version}", dst_path=str(folder)
                )
            )
        paths = (
            file
            for file in path.rglob("*")
            if file.is_file() and file.name != "registered_model_meta"
        )
        return {
            str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in paths
        }


@contextmanager
def running(folder, new_database):
    new_database(folder)
    server = MlflowServer(
        folder, app="onnxserve", variables={"ONNXSERVE_HOME": str(folder / "home")}
    )
    with server.running():
        yield Registry(server)


@pytest.fixture(scope="module")
def source(tmp_path_factory, new_database):
    with running(tmp_path_factory.mktemp("source"), new_database) as registry:
        yield registry


@pytest.fixture(scope="module")
def target(tmp_path_factory, new_database):
    with running(tmp_path_factory.mktemp("target"), new_database) as registry:
        yield registry


@pytest.fixture
def here(source, target, monkeypatch):
    """This process uses the source, and the store of the target for the target."""
    monkeypatch.setenv("ONNXSERVE_HOME", str(source.server.folder / "home"))
    monkeypatch.setenv("TARGET_ONNXSERVE_STORE_URI", target.store_uri)
    with tracking_at(source.server.url):
        yield


@pytest.fixture
def model(source, target, here):
    """A model with a judged version in the source, and with a policy in both
    registries.
    """
    name = f"toy-{next(_numbers)}"
    client = source.client
    for registry in (source, target):
        registry.client.create_registered_model(name, tags={"onnxserve.gate.policy": POLICY})
    run = client.create_run(
        client.create_experiment(name), run_name="training", tags={"team": "blue"}
    )
    run_id = run.info.run_id
    client.log_param(run_id, "depth", 3)
    client.log_metric(run_id, "auc", 0.9)
    client.log_inputs(run_id, [DatasetInput(Dataset("rows", "d1", "local", "{}"))])
    reference = {column: labelled(50)[column] for column in COLUMNS}
    folder = write_classifier(source.server.folder / name, reference=reference)
    (folder / "input_example.json").write_text('{"columns": ["a", "b"], "data": [[1.0, 2.0]]}')
    client.log_artifacts(run_id, str(folder), "model")
    tags = {
        "onnxserve.parent": f"models:/{name}/0",
        "onnxserve.training.data": "abc",
        "owner": "eva",
    }
    client.create_model_version(
        name, f"{run.info.artifact_uri}/model", run_id, tags, description="the first"
    )
    assert onnxserve(f"gate models:/{name}/1").exit_code == 0
    return name


@pytest.fixture
def guarded(tmp_path, here, new_database, monkeypatch):
    """A target with accounts. Commands use the account of alice there."""
    new_database(tmp_path)
    with basic_auth_server(tmp_path, "alice") as server:
        registry = Registry(server)
        monkeypatch.setenv("TARGET_ONNXSERVE_STORE_URI", registry.store_uri)
        monkeypatch.setenv("TARGET_MLFLOW_TRACKING_USERNAME", "alice")
        monkeypatch.setenv("TARGET_MLFLOW_TRACKING_PASSWORD", password("alice"))
        yield registry


def promote(model, target, *options):
    return onnxserve(
        " ".join(
            [
                f"promote models:/{model}/1 --to @champion --to-registry {target.server.url}",
                *options,
            ]
        )
    )


def check_copied_once(source, target, model, folder):
    (version,) = target.versions(model)
    assert target.runs(model) == [version.run_id]
    assert target.files(model, version.version, folder / "target") == source.files(
        model, "1", folder / "source"
    )
    assert [event.action for event in target.events(model, "copy", "promote")] == [
        "copy",
        "promote",
    ]
    assert [event.action for event in source.events(model, "copy", "promote")] == [
        "copy",
        "promote",
    ]
    return version


def test_version_is_copied_with_evidence_and_promoted(source, target, model, tmp_path):
    result = promote(model, target, "-o json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["version"], document["to"], document["is_moved"]) == ("1", "@champion", True)
    assert mentions(result.stderr, model, source.server.url, target.server.url, "bytes")

    version = check_copied_once(source, target, model, tmp_path)
    (original,) = source.versions(model)
    assert version.aliases == ["champion"]
    assert version.description == "the first"
    assert original.aliases == []
    for key in ("onnxserve.parent", "onnxserve.training.data", "owner"):
        assert version.tags[key] == original.tags[key]
    page = f"{source.server.url}/#/models/{model}/versions/1"
    assert version.tags["onnxserve.copied_from"] == document["copy"]["copied_from"] == page
    assert (
        version.tags["onnxserve.copied_gate"]
        == f"{STATE}: {original.tags['onnxserve.gate.report']}"
    )
    assert version.tags["onnxserve.gate.report"].startswith(target.server.url)

    run = target.client.get_run(version.run_id)
    assert run.data.params == {"depth": "3"}
    assert run.data.metrics == {"auc": 0.9}
    assert run.data.tags["team"] == "blue"
    assert run.info.run_name == "training"
    assert run.info.status == "FINISHED"
    assert run.inputs.dataset_inputs[0].dataset.digest == "d1"
    assert run.data.tags["onnxserve.copied_run"].endswith(f"/runs/{original.run_id}")
    reports = [file.path for file in target.client.list_artifacts(version.run_id, "source_gate")]
    assert reports == ["source_gate/gate.json", "source_gate/gate_report.html"]


def test_audit_trails_name_the_other_registry(source, target, model):
    assert promote(model, target).exit_code == 0
    copied, promoted = source.events(model, "copy", "promote")
    assert copied.version == "1"
    assert copied.after == f"{model} version 1 in {target.server.url}"
    assert promoted.after == f"{model} version 1 in @champion of {target.server.url}"
    assert promoted.detail["to"] == "@champion"
    (came,) = target.events(model, "copy")
    assert came.before == f"{source.server.url}/#/models/{model}/versions/1"
    assert came.detail["files"] == target.versions(model)[0].tags["onnxserve.gate.digest"]
    assert came.detail["source_run"].endswith(source.versions(model)[0].run_id)
    assert came.detail["source_model"] == model
    assert came.detail["source_version"] == "1"


def test_target_without_store_setting_has_a_local_store(source, target, model, monkeypatch):
    monkeypatch.delenv("TARGET_ONNXSERVE_STORE_URI")
    assert promote(model, target).exit_code == 0
    assert target.events(model, "copy", "promote") == []
    assert {event.action for event in target.events(model)} >= {"register", "alias"}
    (file,) = source.server.folder.glob(f"home/registries/*{target.server.port}/onnxserve.db")
    with closing(open_store(f"sqlite:///{str(file).replace('%', '%25')}")) as store:
        assert [event.action for event in store.events(model=model)] == ["copy", "gate", "promote"]


def test_target_outage_at_any_request_copies_once(source, target, model, tmp_path):
    with proxy_to(target.server.host, target.server.port) as proxy:
        proxy.most = 0
        command = f"promote models:/{model}/1 --to @champion --to-registry {proxy.url}"
        while (result := onnxserve(command)).exit_code != 0:
            error = result.stderr.splitlines()[-1]
            assert mentions(error, "Error"), result.output
            assert "Traceback" not in result.output
            is_new = mentions(error, "not copied") and not target.runs(model)
            assert is_new or mentions(error, "command"), error
            for version in target.versions(model):
                assert target.client.get_run(version.run_id).info.status == "FINISHED"
            proxy.asked.clear()
            proxy.most += 1
            assert proxy.most < 200
    check_copied_once(source, target, model, tmp_path)


def test_credentials_of_the_source_are_not_sent(source, target, model, tmp_path, monkeypatch):
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text(
        "[mlflow]\nmlflow_tracking_username = f\nmlflow_tracking_password = g\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        proxy_to(source.server.host, source.server.port) as first,
        proxy_to(target.server.host, target.server.port) as second,
        tracking_at(first.url),
    ):
        command = f"promote models:/{model}/1 --to @champion --to-registry {second.url}"
        monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "of-source")
        assert onnxserve(command).exit_code == 0
        assert (first.credentials != [], second.credentials) == (True, [])
        monkeypatch.setenv("TARGET_MLFLOW_TRACKING_TOKEN", "of-target")
        first.credentials.clear()
        assert onnxserve(command).exit_code == 0
        assert {*second.credentials} == {"Bearer of-target"}
        assert "Bearer of-target" not in first.credentials
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "of-source"


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ("1 --to-registry http://127.0.0.1:9", ["127.0.0.1:9", "not copied"]),
        ("1 --to-registry prod", ["prod", "--to-registry"]),
        ("1 --to-registry ftp://prod", ["not copied"]),
        ("9 --to-registry http://127.0.0.1:9", ["9"]),
        ("1 --to-model {model}", ["{model}", "--to-model"]),
        ("1 --to-model a/b", ["a/b"]),
    ],
)
def test_invalid_transfer_is_refused(source, model, options, names):
    result = onnxserve(f"promote models:/{model}/{options} --to @champion".format(model=model))
    assert mentions(said(result), *(name.format(model=model) for name in names)), result.stderr
    assert len(source.versions(model)) == 1
    assert source.events(model, "copy", "promote") == []


@pytest.mark.parametrize(
    ("status", "answer"), [(200, "<html>"), (404, "<html>"), (401, "no"), (403, "no")]
)
def test_target_that_refuses_requests_is_an_error(target, model, status, answer):
    with proxy_to(target.server.host, target.server.port) as proxy:
        proxy.turn(answer, status=status)
        result = onnxserve(f"promote models:/{model}/1 --to @champion --to-registry {proxy.url}")
        assert mentions(said(result), proxy.url, "not copied")
    assert ("TARGET_MLFLOW_TRACKING_TOKEN" in result.stderr) == (status == 401)
    assert target.versions(model) == []


def test_version_without_report_is_copied_and_tagged(source, target, model):
    (judged,) = source.versions(model)
    source.client.create_model_version(model, judged.source, judged.run_id)
    result = onnxserve(
        f"promote models:/{model}/2 --to @champion --to-registry {target.server.url}"
    )
    assert result.exit_code == 0, result.output
    assert target.versions(model)[0].tags["onnxserve.copied_gate"] == "no report"
    assert mentions(result.stderr, "no report")


def test_forged_copy_is_not_promoted(source, target, model, tmp_path):
    forged = target.client.create_run(target.client.create_experiment(model))
    folder = write_classifier(tmp_path / "other", (1.0, 2.0))
    target.client.log_artifacts(forged.info.run_id, str(folder), "model")
    digest = source.versions(model)[0].tags["onnxserve.gate.digest"]
    page = f"{source.server.url}/#/models/{model}/versions/1"
    tags = {"onnxserve.copied_from": page, "onnxserve.copied_files": digest}
    target.client.create_model_version(
        model, f"{forged.info.artifact_uri}/model", forged.info.run_id, tags
    )
    result = promote(model, target)
    assert result.exit_code == 1
    assert mentions(result.stderr.splitlines()[-1], "Error", f"models:/{model}/1", "delete")
    assert [version.aliases for version in target.versions(model)] == [[]]


def test_copy_in_same_registry_keeps_run_and_source(source, model):
    source.client.create_registered_model(f"{model}-prod", tags={"onnxserve.gate.policy": POLICY})
    for _ in range(2):
        result = onnxserve(f"promote models:/{model}/1 --to @champion --to-model {model}-prod")
        assert result.exit_code == 0, result.output
    (copy,) = source.versions(f"{model}-prod")
    (original,) = source.versions(model)
    assert copy.source == f"models:/{model}/1"
    assert copy.run_id == original.run_id
    assert copy.aliases == ["champion"]
    assert copy.tags["onnxserve.gate.report"] != original.tags["onnxserve.gate.report"]
    assert source.runs(f"{model}-prod") == []


def test_mlflow_copy_is_transferred_with_original_evidence(source, target, model):
    other = f"{model}-copy"
    source.client.copy_model_version(f"models:/{model}/1", other)
    source.client.set_registered_model_tag(other, "onnxserve.gate.policy", POLICY)
    result = onnxserve(
        f"promote models:/{other}/1 --to @champion --to-registry {target.server.url}"
    )
    assert result.exit_code == 0, result.output
    (copy,) = target.versions(other)
    (original,) = source.versions(model)
    assert (
        copy.tags["onnxserve.copied_gate"] == f"{STATE}: {original.tags['onnxserve.gate.report']}"
    )
    assert target.client.get_run(copy.run_id).data.params == {"depth": "3"}
    again = onnxserve(
        f"promote models:/{model}/1 --to @champion --to-model {other} "
        f"--to-registry {source.server.url}/"
    )
    assert again.exit_code == 0, again.output
    assert len(source.versions(other)) == 1


def test_failed_gate_at_the_target_keeps_the_copy(target, model):
    target.client.set_registered_model_tag(
        model, "onnxserve.gate.policy", f"{POLICY}max_size_bytes: 1"
    )
    result = promote(model, target)
    assert result.exit_code == 1
    assert mentions(
        result.stderr.splitlines()[-1], "Error", model, target.server.url, "same command"
    )
    assert [version.aliases for version in target.versions(model)] == [[]]


def test_promotion_continues_after_approvals_at_the_target(source, guarded, model, monkeypatch):
    @contextmanager
    def as_admin():
        with monkeypatch.context() as patch, tracking_at(guarded.server.url):
            patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            patch.setenv("MLFLOW_TRACKING_PASSWORD", password("admin"))
            yield

    assert promote(model, guarded, "--request").exit_code == 1
    policy = f"{POLICY}approvals: {{count: 1, evaluation: optional}}"
    with as_admin():
        MlflowClient().set_registered_model_tag(model, "onnxserve.gate.policy", policy)
    refused = promote(model, guarded)
    assert refused.exit_code == 1
    command = (
        f"onnxserve promote models:/{model}/1 --to-registry {guarded.server.url} --to @champion "
        "--request"
    )
    assert f"`{command}`" in refused.stderr.splitlines()[-1]
    requested = promote(model, guarded, "--request", "-o json")
    assert json.loads(requested.stdout)["requested_by"] == "alice"
    with as_admin():
        done(f"request approve models:/{model}/1 --to @champion")
    assert promote(model, guarded).exit_code == 0
    assert [
        event.action for event in guarded.events(model, "copy", "request", "approve", "promote")
    ] == ["copy", "request", "approve", "promote"]


def test_missing_target_account_names_its_variables(guarded, model, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password("alice"))
    for variable in ("TARGET_MLFLOW_TRACKING_USERNAME", "TARGET_MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(variable)
    result = promote(model, guarded)
    assert mentions(
        said(result), "TARGET_MLFLOW_TRACKING_PASSWORD", guarded.server.url, "not copied"
    )


def test_version_is_copied_to_another_workspace(tmp_path, monkeypatch):
    home = tmp_path / "home"
    server = MlflowServer(
        tmp_path, "127.0.0.1", "onnxserve", ("--enable-workspaces",), {"ONNXSERVE_HOME": str(home)}
    )
    for variable, value in (
        ("ONNXSERVE_HOME", home),
        ("TARGET_ONNXSERVE_HOME", home),
        ("MLFLOW_WORKSPACE", "dev"),
    ):
        monkeypatch.setenv(variable, str(value))
    try:
        with monkeypatch.context() as of_server:
            of_server.delenv("MLFLOW_WORKSPACE")
            of_server.delenv("MLFLOW_TRACKING_URI")
            server.start()
            client = MlflowClient(server.url)
            for workspace in ("dev", "prod"):
                client.create_workspace(workspace)
        with tracking_at(server.url):
            for workspace in ("prod", "dev"):
                monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
                client.create_registered_model("X", tags={"onnxserve.gate.policy": POLICY})
            run = client.create_run(client.create_experiment("training"))
            client.log_artifacts(run.info.run_id, str(write_classifier(tmp_path / "X")), "model")
            client.create_model_version("X", f"{run.info.artifact_uri}/model", run.info.run_id)
            same = onnxserve(f"promote models:/X/1 --to @champion --to-registry {server.url}")
            monkeypatch.setenv("TARGET_MLFLOW_WORKSPACE", "prod")
            done = onnxserve(f"promote models:/X/1 --to @champion --to-registry {server.url}")
            monkeypatch.setenv("MLFLOW_WORKSPACE", "prod")
            (copy,) = Registry(server).versions("X")
    finally:
        server.kill()
    assert (same.exit_code, done.exit_code, copy.aliases) == (1, 0, ["champion"]), done.output
    assert copy.tags["onnxserve.copied_from"] == f"{server.url}/#/models/X/versions/1?workspace=dev"
