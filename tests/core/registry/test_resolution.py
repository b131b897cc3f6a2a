import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry.connection import set_service_timeouts
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import registered_version, resolve
from tests.support.refusals import refused
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at


@pytest.mark.parametrize(
    ("model_uri", "version", "aspects"),
    [
        ("models:/tiny/Production", "2", {"stage": "Production", "parity": "proven"}),
        ("models:/tiny/production", "2", {"stage": "Production", "parity": "proven"}),
        ("models:/tiny/None", "3", {}),
        (
            "models:/tiny@live",
            "2",
            {"stage": "Production", "alias": "live", "parity": "proven"},
        ),
        (
            "models:/tiny/tag:team=blue",
            "2",
            {"stage": "Production", "tag": "team=blue", "parity": "proven"},
        ),
        ("models:/tiny/tag:team=it's red", "3", {"tag": "team=it's red"}),
        ("models:/tiny/1", "1", {"stage": "Production"}),
        ("models:/tiny/latest", "3", {}),
    ],
)
def test_reference_resolves_to_one_version(store, model_uri, version, aspects):
    resolved = resolve(model_uri)
    assert resolved.model_uri == model_uri
    assert resolved.name == "tiny"
    assert resolved.version == version
    assert resolved.source == f"models:/tiny/{version}"
    assert resolved.followed is parse_model_uri(model_uri).followed
    assert resolved.aspects == {"run_id": store.run_id, "model_id": store.model_id, **aspects}


def test_recreated_model_has_new_version_identities(
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


def test_unsearchable_model_name_is_refused(store):
    name = """it's "it\""""
    client = mlflow.MlflowClient()
    client.create_registered_model(name)
    try:
        with refused(InvalidConfig, "quotes"):
            resolve(f"models:/{name}/Staging")
    finally:
        client.delete_registered_model(name)


def test_logged_model_is_its_own_version(store):
    resolved = resolve(f"models:/{store.model_id}")
    assert (resolved.name, resolved.version, resolved.followed) == ("model", store.model_id, False)
    assert resolved.aspects["run_id"] == store.run_id


def test_run_model_has_no_version(store):
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
def test_missing_version_error_lists_versions(store, model_uri, names):
    with refused(NotFound, *names) as caught:
        resolve(model_uri)
    assert "\n" not in caught.value.message


def test_unknown_stage_error_suggests_alias(store):
    with refused(InvalidConfig, "a version", "`latest`", "a stage", "models:/tiny@champion"):
        resolve("models:/tiny/champion")


def test_registry_outage_is_noticed_within_seconds(store, monkeypatch):
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


def test_folder_may_share_model_name(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert registered_version("tiny", "1").version == "1"


def test_folder_is_resolved_without_mlflow(tmp_path):
    code = (
        "import sys; from mlflow_deploy_plugin.core.registry.resolution import resolve;"
        f"r = resolve({str(tmp_path)!r}); print(r.name, r.source, 'mlflow' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split() == [tmp_path.name, str(tmp_path), "False"]


@pytest.mark.parametrize("name", ["tiny\r\nX-Evil: yes", "tiny\x1b[2J", "tiny\u2028"])
def test_name_with_control_characters_is_refused(tmp_path, name):
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
def test_invalid_model_name_error_shows_form(given, right):
    with refused(InvalidConfig, repr(given), "not the name", right):
        registered_version(given, "1")


@pytest.fixture(scope="module")
def model(mlflow_server):
    """Register versions 1 (Production, @old, team a), 2 (Production, team b), 3
    (Staging, @new, team a), 4.
    """
    name = f"many-{uuid.uuid4().hex}"
    client = MlflowClient(mlflow_server.url)
    client.create_registered_model(name)
    for _ in range(4):
        client.create_model_version(name, "s3://bucket/model")
    for version, stage in (("1", "Production"), ("2", "Production"), ("3", "Staging")):
        client.transition_model_version_stage(name, version, stage)
    for alias, version in (("old", "1"), ("new", "3")):
        client.set_registered_model_alias(name, alias, version)
    for version, team in (("1", "a"), ("2", "b"), ("3", "a")):
        client.set_model_version_tag(name, version, "team", team)
    return name


@pytest.fixture
def proxy(mlflow_server):
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        yield proxy


@pytest.mark.parametrize(
    ("selector", "version"),
    [
        ("/Production", "2"),
        ("/Staging", "3"),
        ("@old", "1"),
        ("@new", "3"),
        ("/tag:team=a", "3"),
        ("/tag:team=b", "2"),
    ],
)
def test_reference_costs_one_call(proxy, model, selector, version):
    assert resolve(f"models:/{model}{selector}").version == version
    assert len(proxy.asked) == 1, proxy.asked


def test_resolution_never_lists_all_versions(proxy, model):
    for selector in ("/latest", "/tag:team=a", "/Production"):
        resolve(f"models:/{model}{selector}")
    for selector in ("/tag:team=none", "@dead"):
        with pytest.raises(NotFound):
            resolve(f"models:/{model}{selector}")
    searches = [request for request in proxy.asked if "model-versions/search" in request]
    assert searches
    assert all(
        "max_results=1&" in request or "max_results=10&" in request for request in searches
    ), searches


def test_unevaluated_version_passes_without_dataset_in_policy(proxy, model):
    client = MlflowClient(proxy.url)
    for key, value in (
        ("onnxserve.gate", "passed without an evaluation"),
        ("onnxserve.gate.digest", "ab12"),
    ):
        client.set_model_version_tag(model, "2", key, value)
    for policy, is_passed in (
        ("gated_stages: [Production]", True),
        ("evaluation: {dataset: rows.csv, target: y}", False),
    ):
        client.set_registered_model_tag(model, "onnxserve.gate.policy", policy)
        resolved = resolve(f"models:/{model}/Production")
        assert resolved.gate_status.passed is is_passed
        assert ("onnxserve gate" in resolved.gate_status.reason) is not is_passed


def test_later_verdict_is_read(proxy, model):
    client = MlflowClient(proxy.url)
    client.set_registered_model_tag(model, "onnxserve.gate.policy", "gated_stages: [Production]")
    client.set_model_version_tag(model, "1", "onnxserve.gate.digest", "ab12")
    for state in ("passed without an evaluation", "passed"):
        client.set_model_version_tag(model, "1", "onnxserve.gate", state)
        assert resolve(f"models:/{model}@old").gate_status.state == state


@pytest.mark.parametrize(
    ("mood", "status"), [("<html>hello</html>", 200), ("[1]", 200), ("oops", 500), ("refuse", 200)]
)
def test_invalid_answer_is_reported_after_one_request(proxy, model, mood, status):
    proxy.turn(mood, status=status)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        for selector in ("/Production", "@new", "/tag:team=a"):
            proxy.asked.clear()
            with pytest.raises(RegistryUnavailable):
                resolve(f"models:/{model}{selector}")
            assert len(proxy.asked) == 1
