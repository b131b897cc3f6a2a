import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.core.registry.resolution import registered_version, resolve
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("model_uri", "version", "followed", "aspects"),
    [
        ("models:/tiny/Production", "2", True, {"stage": "Production", "parity": "proven"}),
        ("models:/tiny/production", "2", True, {"stage": "Production", "parity": "proven"}),
        ("models:/tiny/None", "3", True, {}),
        (
            "models:/tiny@live",
            "2",
            True,
            {"stage": "Production", "alias": "live", "parity": "proven"},
        ),
        (
            "models:/tiny/tag:team=blue",
            "2",
            True,
            {"stage": "Production", "tag": "team=blue", "parity": "proven"},
        ),
        ("models:/tiny/tag:team=it's red", "3", True, {"tag": "team=it's red"}),
        ("models:/tiny/1", "1", False, {"stage": "Production"}),
        ("models:/tiny/latest", "3", False, {}),
    ],
)
def test_a_registered_model_becomes_one_version(store, model_uri, version, followed, aspects):
    resolved = resolve(model_uri)
    assert resolved.model_uri == model_uri
    assert resolved.name == "tiny"
    assert resolved.version == version
    assert resolved.source == f"models:/tiny/{version}"
    assert resolved.followed is followed
    assert resolved.aspects == {"run_id": store.run_id, "model_id": store.model_id, **aspects}


def test_a_model_that_is_deleted_and_registered_anew_has_other_versions_under_the_same_numbers(
    store,
):
    identities = set()
    for place in ("before", "after", "after"):
        client = mlflow.MlflowClient()
        client.create_registered_model("anew")
        client.create_model_version("anew", f"s3://bucket/{place}")
        identities.add(resolve("models:/anew/1").identity)
        client.delete_registered_model("anew")
    assert len(identities) == 3


def test_model_name_with_unsearchable_quotes_is_refused(store):
    name = """it's "it\""""
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    try:
        with refused(InvalidConfig, "quotes"):
            resolve(f"models:/{name}/Staging")
    finally:
        client.delete_registered_model(name)


def test_a_logged_model_is_its_own_version(store):
    resolved = resolve(f"models:/{store.model_id}")
    assert (resolved.name, resolved.version, resolved.followed) == ("model", store.model_id, False)
    assert resolved.aspects["run_id"] == store.run_id


def test_a_runs_model_leaves_the_version_to_its_files(store):
    resolved = resolve(f"runs:/{store.run_id}/model")
    assert resolved.name == "model"
    assert resolved.version == ""
    assert resolved.aspects["run_id"] == store.run_id


@pytest.mark.parametrize(
    ("model_uri", "names"),
    [
        (
            "models:/tiny/Staging",
            ["model tiny", "stage Staging", "1 (Production), 2 (Production, @live), 3"],
        ),
        ("models:/tiny/9", ["model tiny", "version 9", "1 (Production)"]),
        ("models:/tiny@dead", ["model tiny", "alias dead", "1 (Production)"]),
        (
            "models:/tiny/tag:team=green",
            ["tag team=green", "1 (Production, team=blue)", "3 (team=it's red)"],
        ),
        ("models:/empty/latest", ["model empty", "not have any versions"]),
        ("models:/tyni/Production", ["model tyni", "empty, tiny"]),
        ("models:/m-0000", ["logged model m-0000"]),
        ("runs:/0000/model", ["run 0000"]),
        ("/no/such/folder", ["folder /no/such/folder"]),
    ],
)
def test_missing_version_error_lists_the_existing_versions(store, model_uri, names):
    with refused(NotFound, *names) as caught:
        resolve(model_uri)
    assert "\n" not in caught.value.message


def test_missing_model_error_lists_the_models_and_the_registry(store):
    with refused(NotFound, "tyni", "empty, tiny", "sqlite://"):
        resolve("models:/tyni/Production")


def test_unknown_stage_error_suggests_the_alias(store):
    with refused(InvalidConfig, "a version", "`latest`", "a stage", "models:/tiny@champion"):
        resolve("models:/tiny/champion")


def test_a_registry_that_is_down_is_noticed_within_seconds_and_named_without_credentials(
    store, monkeypatch
):
    # Set the variables first, so that monkeypatch restores them.
    for variable in ("MAX_RETRIES", "BACKOFF_FACTOR", "TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", "")
        del os.environ[f"MLFLOW_HTTP_REQUEST_{variable}"]
    set_service_timeouts()
    mlflow.set_tracking_uri("http://user:secret@127.0.0.1:9")
    started = time.monotonic()
    names = ("model tiny", "http://127.0.0.1:9", "connection refused")
    with refused(RegistryUnavailable, *names) as caught:
        resolve("models:/tiny/Production")
    assert "secret" not in caught.value.message
    assert time.monotonic() - started < 60  # MLflow's own retries would take four minutes.


def test_folder_may_share_the_name_of_a_registered_model(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert registered_version("tiny", "1").version == "1"


def test_a_folder_is_resolved_without_importing_mlflow(tmp_path):
    code = (
        "import sys; from mlflow_deploy_plugin.core.registry.resolution import resolve;"
        f"r = resolve({str(tmp_path)!r}); print(r.name, r.source, 'mlflow' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split() == [tmp_path.name, str(tmp_path), "False"]


@pytest.mark.parametrize("name", ["tiny\r\nX-Evil: yes", "tiny\x1b[2J", "tiny\u2028"])
def test_a_name_with_control_characters_is_not_served(tmp_path, name):
    """MLflow registers a model with such a name, and a folder may have such a name."""
    (tmp_path / name).mkdir()
    with refused(InvalidConfig, "'tiny", "control characters"):
        resolve(str(tmp_path / name))


@pytest.mark.parametrize(
    ("given", "right"),
    [
        (".", "mlflow.register_model registers the model in a folder"),
        ("/srv/model", "mlflow.register_model"),
        ("models:/tiny/2", "tiny 2"),
        ("models:/tiny/Production", "tiny VERSION"),
        ("models:/tiny@a", "tiny VERSION"),
        ("models://profile/tiny/2", "NAME VERSION"),
    ],
)
def test_invalid_registered_model_name_is_refused_with_the_right_form(given, right):
    with refused(InvalidConfig, repr(given), "not the name", right):
        registered_version(given, "1")
