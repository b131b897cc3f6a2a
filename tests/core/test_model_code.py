"""The permission to run the code of models."""

import os

import pytest

from mlflow_deploy_plugin.core import model_code
from mlflow_deploy_plugin.core.model_code import MODEL_CODE, model_code_refusal


@pytest.mark.parametrize(
    ("setting", "is_allowed"),
    [("true", True), ("1", True), ("FALSE", False), ("0", False), ("", False), ("off", False)],
)
def test_user_setting_survives_switch_off(setting, is_allowed, monkeypatch):
    monkeypatch.setattr(model_code._process, "setting", None)
    monkeypatch.setenv(MODEL_CODE, setting)
    assert (model_code_refusal("x") == "") is is_allowed
    for _ in range(2):
        model_code.switch_model_code_off()
        assert os.environ[MODEL_CODE] == "false"
        assert (model_code_refusal("x") == "") is is_allowed
