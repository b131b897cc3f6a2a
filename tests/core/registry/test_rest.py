"""Tests of the agent's client: MLflow's client and this client read the same from a
real server.
"""

import os
import subprocess
import sys

import mlflow
import pytest
from mlflow import MlflowClient, environment_variables
from onnx.parser import parse_model as parse_graph

from mlflow_deploy_plugin.core.errors import InvalidConfig, NotFound, RegistryUnavailable
from mlflow_deploy_plugin.core.registry import connection
from mlflow_deploy_plugin.core.registry.model_files import download, fetch
from mlflow_deploy_plugin.core.registry.model_uri import parse_model_uri
from mlflow_deploy_plugin.core.registry.resolution import resolve, selected_models
from mlflow_deploy_plugin.core.registry.rest import HttpSettings, MlflowRest, http_settings
from mlflow_deploy_plugin.core.registry.tags import tag_version, untag_version
from tests.support.models import IDENTITY
from tests.support.refusals import refused
from tests.support.services.proxy import proxy_to
from tests.support.tracking import tracking_at


@pytest.fixture
def proxy(mlflow_server):
    with proxy_to(mlflow_server.host, mlflow_server.port) as proxy, tracking_at(proxy.url):
        yield proxy


@pytest.fixture
def of_agent(monkeypatch):
    """Let this process use the agent's client."""
    monkeypatch.setattr(connection._process, "imports_mlflow", False)
    return monkeypatch


@pytest.fixture(scope="module")
def model_id(mlflow_server):
    """Log a model, and register it as version 1 of `rest` with a stage, the alias `a`
    and a tag.
    """
    with tracking_at(mlflow_server.url):
        with mlflow.start_run():
            model = parse_graph(IDENTITY)
            logged = mlflow.onnx.log_model(
                model, name="model", registered_model_name="rest", pip_requirements=[]
            )
        client = MlflowClient()
        client.transition_model_version_stage("rest", "1", "Production")
        client.set_registered_model_alias("rest", "a", "1")
        client.set_model_version_tag("rest", "1", "team", "a")
    return str(logged.model_id)


def test_both_clients_resolve_and_copy_alike(proxy, model_id, tmp_path, monkeypatch):
    run_id = MlflowClient().get_logged_model(model_id).source_run_id
    selectors = ["/Production", "/latest", "@a", "/tag:team=a", "/1"]
    uris = [f"models:/rest{selector}" for selector in selectors] + [
        f"models:/{model_id}",
        f"runs:/{run_id}/model",
    ]
    expected = [resolve(uri) for uri in uris]
    sources = [f"models:/{model_id}", "models:/rest/1"]
    copied = [file_names(download(source, tmp_path / "mlflow")) for source in sources]
    patterns = [parse_model_uri(f"models:/*{end}") for end in ("/Production", "@a", "/tag:team=a")]
    listed = [[*selected_models(pattern)] for pattern in patterns]

    monkeypatch.setattr(connection._process, "imports_mlflow", False)
    assert [resolve(uri) for uri in uris] == expected
    assert [file_names(download(source, tmp_path / "rest")) for source in sources] == copied
    assert [[*selected_models(pattern)] for pattern in patterns] == listed
    assert all("rest" in marks for (marks,) in listed)


def file_names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "uri", ["models:/rest@none", "models:/rest/999", "models:/rest/Staging", "models:/no/1"]
)
def test_both_clients_report_missing_version_alike(proxy, model_id, uri, monkeypatch):
    messages = []
    for imports_mlflow in (True, False):
        monkeypatch.setattr(connection._process, "imports_mlflow", imports_mlflow)
        with pytest.raises(NotFound) as raised:
            resolve(uri)
        messages.append(raised.value.message)
    assert messages[0] == messages[1]


def test_tag_is_set_and_deleted(proxy, model_id, of_agent):
    client = MlflowClient()
    tag_version("rest", "1", "onnxserve.error", "it fails")
    assert client.get_model_version("rest", "1").tags["onnxserve.error"] == "it fails"
    untag_version("rest", "1", "onnxserve.error")
    assert "onnxserve.error" not in client.get_model_version("rest", "1").tags
    with pytest.raises(NotFound):
        tag_version("rest", "999", "onnxserve.error", "it fails")


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"USERNAME": "agent", "PASSWORD": "s3cret", "TOKEN": "t"}, "Basic YWdlbnQ6czNjcmV0"),
        ({"USERNAME": "agent", "TOKEN": "t"}, "Bearer t"),
        ({}, None),
    ],
)
def test_credentials_match_mlflow_client(proxy, of_agent, tmp_path, variables, header):
    of_agent.setenv("HOME", str(tmp_path))
    for name, value in variables.items():
        of_agent.setenv(f"MLFLOW_TRACKING_{name}", value)
    with pytest.raises(NotFound):
        resolve("models:/no/1")
    assert set(proxy.credentials) == ({header} if header else set())


def test_mlflow_credentials_file_is_read(of_agent, tmp_path):
    of_agent.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    text = "[mlflow]\nmlflow_tracking_username = agent\nmlflow_tracking_password = s3%cret\n"
    (tmp_path / ".mlflow" / "credentials").write_text(text)
    assert http_settings().authorization == {"Authorization": "Basic YWdlbnQ6czMlY3JldA=="}


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4"])
def test_auth_plugin_uses_mlflow_client(variable, monkeypatch):
    assert MlflowRest.at("http://m", "http://m") is not None
    assert MlflowRest.at("http://m", "sqlite:///m.db") is None
    monkeypatch.setenv(variable, "true")
    assert MlflowRest.at("http://m", "http://m") is None


def test_server_without_workspaces_is_refused(proxy, model_id, of_agent):
    of_agent.setenv("MLFLOW_WORKSPACE", "team-a")
    with refused(RegistryUnavailable, "team-a", "does not support workspaces"):
        resolve("models:/rest@a")


@pytest.mark.parametrize("name", ["../outside", "a/b", ".."])
def test_file_name_outside_of_folder_is_refused(name, proxy, of_agent, tmp_path):
    listing = b'{"files": [{"path": "%s", "is_dir": false}]}' % name.encode()
    proxy.rewrite = lambda _: listing
    with refused(RegistryUnavailable, "the files", repr(name)):
        fetch("mlflow-artifacts:/1/model", tmp_path / "copy", "the files")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("location", ["mlflow-artifacts:/1/..", "mlflow-artifacts:/1/%2e%2e/model"])
def test_address_outside_of_folder_is_refused(location, proxy, of_agent, tmp_path):
    proxy.rewrite = lambda _: b'{"files": [{"path": "file"}]}'
    with refused(InvalidConfig, "the files", "segment .."):
        fetch(location, tmp_path / "copy", "the files")
    assert [*tmp_path.rglob("file")] == []


AGENT = """
import sys
from pathlib import Path
from mlflow_deploy_plugin.core.registry.connection import own_process
from mlflow_deploy_plugin.serve.agent import __main__
from mlflow_deploy_plugin.serve.agent.fetch import MlflowRegistry, ModelCache

own_process(imports_mlflow=False)
folder = Path(sys.argv[1])
registry = MlflowRegistry(ModelCache(folder / "cache", folder))
resolved = registry.resolve("models:/rest@a")
fetched = registry.fetch(resolved)
registry.report_failure(resolved.source, "it fails")
print((fetched.folder / "MLmodel").is_file(), "mlflow" in sys.modules)
"""


@pytest.mark.long
def test_agent_follows_model_without_mlflow(proxy, model_id, tmp_path):
    environment = os.environ | {"MLFLOW_TRACKING_URI": proxy.url}
    command = [sys.executable, "-c", AGENT, str(tmp_path)]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.stdout == "True False\n", ended.stderr


def test_default_settings_match_mlflow_client():
    variables = {name: f"MLFLOW_{name.upper()}" for name in HttpSettings.model_fields}
    of_mlflow = {
        name: getattr(environment_variables, variable).default
        for name, variable in variables.items()
        if hasattr(environment_variables, variable)
    }
    assert {name: value or "" for name, value in of_mlflow.items()} == {
        name: value or "" for name, value in HttpSettings() if name in of_mlflow
    }
    assert len(of_mlflow) >= 14


def test_out_of_range_setting_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "11")
    with refused(InvalidConfig, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "'11'"):
        http_settings()


@pytest.mark.parametrize("text", ["s3cret\n", "s3cret\r\nHost: x", "s3cretø"])
def test_invalid_token_error_hides_value(text, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", text)
    with pytest.raises(InvalidConfig) as raised:
        http_settings()
    assert raised.value.message.startswith("MLFLOW_TRACKING_TOKEN: only printable")
    assert "s3cret" not in raised.value.message
