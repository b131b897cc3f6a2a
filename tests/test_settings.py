"""Settings come from the environment, and a wrong one is named."""

from pathlib import Path

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ONNXSERVE_HOME", raising=False)


def test_everything_lies_below_home() -> None:
    settings = load_settings()

    home = Path.home() / ".onnxserve"
    assert settings.home_path == home
    assert settings.store_url == f"sqlite:///{home}/onnxserve.db"
    assert settings.inference_log == str(home / "inference_log")
    assert (settings.cache_path, settings.deployments_path) == (home / "cache", home / "deployments")


def test_a_relative_home_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONNXSERVE_HOME", "here")

    assert load_settings().home_path == tmp_path / "here"


def test_store_and_log_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_value_that_cannot_be_is_named_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)

    with pytest.raises(InvalidConfig, match=f"^{variable}: .*{said}.*'{value}'"):
        load_settings()


def test_every_setting_is_documented() -> None:
    assert all(field.description for field in Settings.model_fields.values())
