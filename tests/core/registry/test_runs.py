"""Tests of MLflow runs in a separate tracking database."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import RegistryUnavailable
from mlflow_deploy_plugin.core.registry.resolution import ResolvedModel
from mlflow_deploy_plugin.core.registry.runs import (
    SUPERSEDED,
    IdempotentRun,
    get_or_create_experiment,
    log_flavor,
    log_metrics,
    log_run,
    run_of_model,
)
from tests.support.refusals import refused
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at

WINDOW = IdempotentRun(
    "the run of the window", "drift", {"window": "3", "revision": "1"}, ("state", "done")
)


@pytest.fixture
def client(tmp_path, new_database):
    with tracking_at(new_database(tmp_path)):
        yield MlflowClient()


def test_deleted_experiment_is_restored(client):
    first = get_or_create_experiment(client, "drift")
    client.delete_experiment(first)

    assert get_or_create_experiment(client, "drift") == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_logged_model_id_is_normalized(client, monkeypatch):
    """Over REST, `m-1?'` selects m-1: a path ends at the question mark. In a filter,
    the quote would end the text.
    """
    model_id = client.create_logged_model(get_or_create_experiment(client, "drift")).model_id
    find = MlflowClient.get_logged_model
    monkeypatch.setattr(
        MlflowClient, "get_logged_model", lambda self, named: find(self, named.partition("?")[0])
    )

    assert (
        run_of_model(ResolvedModel("models:/m", "m", "", "models:/m"), "", f"{model_id}?'").model_id
        == model_id
    )


def test_second_report_updates_same_run(client):
    times = []
    runs = [
        WINDOW.log("window 3", {"by": "a"}, lambda _client, _run, before: times.append(before))
        for _ in range(2)
    ]

    assert runs[0] == runs[1]
    assert times == [0, 1]
    run = client.get_run(runs[0].run_id)
    assert run.info.status == "FINISHED"
    assert {
        "window": "3",
        "revision": "1",
        "by": "a",
        "state": "done",
    }.items() <= run.data.tags.items()


def test_older_duplicate_run_is_used(client):
    experiment = get_or_create_experiment(client, "drift")
    tags = {"window": "3", "revision": "1"}
    older, younger = (
        client.create_run(experiment, start_time=time, tags=tags).info.run_id for time in (1, 2)
    )

    assert WINDOW.log("window 3", {}, lambda *_: None).run_id == older
    assert client.get_run(younger).data.tags[SUPERSEDED] == older


def test_deleted_project_run_is_reported(client, monkeypatch):
    deleted = client.create_run(get_or_create_experiment(client, "drift")).info.run_id
    client.delete_run(deleted)
    monkeypatch.setenv("MLFLOW_RUN_ID", deleted)

    with refused(RegistryUnavailable, "the run of the window", "deleting"):
        WINDOW.log("window 3", {}, lambda *_: None)


def test_run_of_other_revision_is_kept(client):
    experiment = get_or_create_experiment(client, "drift")
    other = client.create_run(experiment, tags={"window": "3", "revision": "2"}).info.run_id

    assert WINDOW.log("window 3", {}, lambda *_: None).run_id != other


@pytest.mark.parametrize("is_project", [False, True])
def test_run_finishes_or_fails_except_in_project(client, is_project, monkeypatch):
    experiment = get_or_create_experiment(client, "gate")
    if is_project:
        monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run(experiment).info.run_id)

    logged = log_run("the run", "gate", {"kind": "gate"}, lambda _: experiment, lambda *_: None)
    with refused(RegistryUnavailable, "the run", "the disk is full"):
        log_run("the run", "gate", {}, lambda _: experiment, _fail)

    assert client.get_run(logged.run_id).info.status == ("RUNNING" if is_project else "FINISHED")
    assert client.get_run(logged.run_id).data.tags["kind"] == "gate"
    states = {run.info.status for run in client.search_runs([experiment])}
    assert states == ({"RUNNING"} if is_project else {"FINISHED", "FAILED"})


def test_more_than_1000_metrics_are_logged(client):
    run_id = client.create_run(get_or_create_experiment(client, "drift")).info.run_id

    log_metrics(
        client, run_id, "m-of-another-server", ((f"m{number}", number) for number in range(1001))
    )

    assert len(client.get_run(run_id).data.metrics) == 1001


def _fail(*_):
    raise OSError("the disk is full")


class TextModel:
    """An MLflow flavor whose models are texts."""

    @staticmethod
    def save_model(path, mlflow_model, text):
        if not text:
            raise ValueError("there is no text")
        Path(path).mkdir()
        (Path(path) / "text").write_text(text)
        mlflow_model.save(f"{path}/MLmodel")


@pytest.fixture
def client_of_old_server(mlflow_server, monkeypatch):
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        proxy.turn("Not Found", "/logged-models", 404)  # MLflow 2 answers with this status.
        client = MlflowClient()
        monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", get_or_create_experiment(client, "old-server"))
        yield client


def test_log_model_without_server_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        tracking_at("http://127.0.0.1:1"),
        refused(RegistryUnavailable, "the model", "http://127.0.0.1:1", "connection refused"),
    ):
        log_flavor(None)


def test_models_are_stored_separately_before_mlflow_3(
    client_of_old_server, mlflow_server, tmp_path
):
    first = log_flavor(TextModel, "deep/model", text="a")
    other_models = [
        log_flavor(TextModel, "deep/model", run_id=first.run_id, text=text) for text in "bc"
    ]

    assert client_of_old_server.get_run(first.run_id).info.status == "FINISHED"
    texts = [
        Path(
            MlflowClient(mlflow_server.url).download_artifacts(
                info.run_id, f"{info.artifact_path}/text", str(tmp_path)
            )
        ).read_text()
        for info in (first, *other_models)
    ]
    assert texts == ["a", "b", "c"]
