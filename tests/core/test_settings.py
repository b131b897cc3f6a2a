"""Settings are read from the environment, and an invalid setting is named in the
message.
"""

import os
import pickle
from pathlib import Path

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.settings import Settings, load_secrets, load_settings
from mlflow_deploy_plugin.core.spec.types import field_descriptions
from tests.support.commands import onnxserve
from tests.support.refusals import mentions


@pytest.fixture(autouse=True)
def _no_home(monkeypatch):
    monkeypatch.delenv("ONNXSERVE_HOME", raising=False)


@pytest.mark.parametrize(
    ("workspace", "home", "log"),
    [
        ("default", "", "inference_log"),
        ("team-a", "workspaces/team-a", "inference_log/workspaces/team-a"),
    ],
)
def test_paths_are_below_home_of_workspace(workspace, home, log, monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", workspace)
    settings = load_settings()

    root = Path.home() / ".onnxserve"
    assert settings.home_path == root / home
    assert settings.store_url == f"sqlite:///{root / home}/onnxserve.db"
    assert settings.inference_log == str(root / log)
    assert settings.cache_path == root / home / "cache"
    assert settings.deployments_path == root / home / "deployments"


def test_settings_keep_their_workspace(monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    settings = load_settings()
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-b")  # the workspace of another request or thread
    assert settings.home_path.name == "team-a"
    assert pickle.loads(pickle.dumps(settings)).home_path.name == "team-a"


def test_workspace_has_its_own_store_and_log(monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    monkeypatch.setenv("ONNXSERVE_LOG_URI", "s3://bucket/log/")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "postgresql+psycopg://db/{workspace}")
    assert load_settings().inference_log == "s3://bucket/log/workspaces/team-a"
    assert load_settings().store_url == "postgresql+psycopg://db/team-a"
    monkeypatch.delenv("MLFLOW_WORKSPACE")
    assert load_settings().store_url == "postgresql+psycopg://db/default"


def test_shared_store_of_workspaces_is_refused(monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "postgresql+psycopg://db/onnxserve")
    with pytest.raises(InvalidConfig, match=r"team-a .*\{workspace\}"):
        _ = load_settings().store_url


@pytest.mark.parametrize("name", ["../team-a", "-a", "team-a/b", "Team", "team-ä", "a" * 64])
def test_invalid_workspace_name_is_refused(name, monkeypatch):
    monkeypatch.setenv("MLFLOW_WORKSPACE", name)
    with pytest.raises(InvalidConfig, match="MLFLOW_WORKSPACE"):
        load_settings()


def test_missing_home_error_names_variable(monkeypatch):
    def unknown(_):
        raise KeyError

    monkeypatch.delenv("HOME")
    # This is the case in a container that runs with an arbitrary user id.
    monkeypatch.setattr("pwd.getpwuid", unknown)
    result = onnxserve("list")
    assert result.exit_code == 1
    assert mentions(result.stderr, "~/.onnxserve", "HOME")


def test_unknown_user_folder_is_refused():
    result = onnxserve("predict ~nobody-of-this-name/model", given='[{"a": 1}]')
    assert result.exit_code == 1
    assert mentions(result.stderr, "~nobody-of-this-name/model", "HOME")


def test_relative_path_in_deleted_folder_is_refused(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = onnxserve("batch models:/m/1 -i rows.csv --folder out")
    assert result.exit_code == 1
    assert mentions(result.stderr, "rows.csv", "current folder")


def test_relative_home_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXSERVE_HOME", "here")

    assert load_settings().home_path == tmp_path / "here"


def test_store_and_log_can_be_elsewhere(monkeypatch):
    monkeypatch.setenv("ONNXSERVE_STORE_URI", "postgresql+psycopg://onnx:s3cret@host/db")
    monkeypatch.setenv("ONNXSERVE_LOG_URI", "s3://bucket/log")

    settings = load_settings()

    assert settings.store_url == "postgresql+psycopg://onnx:s3cret@host/db"
    assert settings.inference_log == "s3://bucket/log"
    assert "s3cret" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("ONNXSERVE_POLL_SECONDS", "often", "unable to parse string as a number"),
        ("ONNXSERVE_POLL_SECONDS", "0", "greater than or equal to 0.1"),
        ("ONNXSERVE_READY_TIMEOUT_SECONDS", "-1", "greater than 0"),
    ],
)
def test_invalid_value_error_names_variable(monkeypatch, variable, value, said):
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidConfig, match=f"^{variable}: .*{said}.*'{value}'"):
        load_settings()


def test_every_setting_is_documented():
    assert field_descriptions(Settings).keys() == Settings.model_fields.keys()


@pytest.fixture
def secrets(tmp_path, monkeypatch):
    for name in ("ONNXSERVE_STORE_URI", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "")  # monkeypatch restores it.
        monkeypatch.delenv(name)
    monkeypatch.setenv("ONNXSERVE_SECRETS", str(tmp_path))
    return tmp_path


def test_environment_overrides_secret_files(secrets, monkeypatch):
    (secrets / "ONNXSERVE_STORE_URI").write_text("postgresql+psycopg://onnx:s3cret@host/db\n")
    (secrets / "AWS_SECRET_ACCESS_KEY").write_text("of the file")
    (secrets / "tls.key").write_bytes(b"\xff is no variable")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of the environment")

    load_secrets()

    assert load_settings().store_url == "postgresql+psycopg://onnx:s3cret@host/db"
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == "of the environment"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "No such file or directory"),
        (b"\xff", "ONNXSERVE_STORE_URI cannot be read: it is not a text"),
        (b"a\0b", "ONNXSERVE_STORE_URI cannot be read: it is not a text"),
    ],
)
def test_unreadable_secrets_are_refused(secrets, monkeypatch, content, why):
    if content is None:
        monkeypatch.setenv("ONNXSERVE_SECRETS", str(secrets / "absent"))
    else:
        (secrets / "ONNXSERVE_STORE_URI").write_bytes(content)

    result = onnxserve("keys list")

    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ONNXSERVE_SECRETS: ")
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
