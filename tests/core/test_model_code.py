"""The permission to run the code of models."""

import os

import pytest

from mlflow_deploy_plugin.core import model_code
from mlflow_deploy_plugin.core.errors import CodeRefused
from mlflow_deploy_plugin.core.model_code import (
    MODEL_CODE,
    model_code_is_allowed,
    require_model_code,
    switch_model_code_off,
)


@pytest.fixture(autouse=True)
def process_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_code._process, "setting", None)
    monkeypatch.delenv(MODEL_CODE, raising=False)


@pytest.mark.parametrize("setting", ["true", "True", "1"])
def test_code_execution_is_allowed(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model_code_is_allowed()
    monkeypatch.setenv(MODEL_CODE, setting)
    require_model_code("models:/toy/3")


@pytest.mark.parametrize("setting", ["false", "FALSE", "0", "", "off"])
def test_code_execution_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODEL_CODE, setting)
    with pytest.raises(CodeRefused, match=f"models:/toy/3 .*{MODEL_CODE}=true"):
        require_model_code("models:/toy/3")


@pytest.mark.parametrize(("setting", "is_allowed"), [("true", True), ("false", False)])
def test_code_execution_that_a_process_switches_off_keeps_the_users_setting(
    setting: str,
    is_allowed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MODEL_CODE, setting)
    switch_model_code_off()
    switch_model_code_off()
    assert os.environ[MODEL_CODE] == "false"
    assert model_code_is_allowed() is is_allowed
