import os

import pytest

from mlflow_deploy_plugin.registry.connection import limit_patience, patience_for_files, without_credentials

TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Takes the variables away, and back afterwards."""
    for name in ("HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_BACKOFF_FACTOR", "HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(f"MLFLOW_{name}", "")
        del os.environ[f"MLFLOW_{name}"]
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    return monkeypatch


def test_calls_are_short_and_downloads_are_not(clean: pytest.MonkeyPatch) -> None:
    limit_patience()
    assert os.environ[TIMEOUT] == "5"
    with patience_for_files():
        assert TIMEOUT not in os.environ
    assert os.environ[TIMEOUT] == "5"


def test_what_the_user_said_counts(clean: pytest.MonkeyPatch) -> None:
    clean.setenv(TIMEOUT, "77")
    limit_patience()
    with patience_for_files():
        assert os.environ[TIMEOUT] == "77"


def test_credentials_are_taken_out_of_every_uri_of_a_text() -> None:
    text = "https://user:p%40ss@host/x failed, postgresql+psycopg://u@db/y too, a@b.c stays, http://u:p@ss@h:1/z@a"
    assert without_credentials(text) == (
        "https://host/x failed, postgresql+psycopg://db/y too, a@b.c stays, http://h:1/z@a"
    )
