"""The permission of a process to run the code of models: pyfuncs, pickles and torch
originals.

MLflow 3.18 and newer refuses them if `MLFLOW_ALLOW_MODEL_CODE_EXECUTION` is false.
onnxserve refuses them with each version of MLflow, and names the remedy.
"""

import os
from dataclasses import dataclass

from mlflow_deploy_plugin.core.errors import CodeRefused

MODEL_CODE = "MLFLOW_ALLOW_MODEL_CODE_EXECUTION"
WITHOUT_ONNX = "a version without an ONNX form"


@dataclass
class _Process:
    """`setting` is the value of the variable before `switch_model_code_off`."""

    setting: str | None = None


_process = _Process()


def model_code_is_allowed() -> bool:
    """Return False if the user of this process has switched model code off."""
    setting = _process.setting
    if setting is None:
        setting = os.environ.get(MODEL_CODE, "true")
    return setting.lower() in ("true", "1")  # MLflow's spellings


def model_code_refusal(what: str) -> str:
    """Return the reason why `what` may not run; empty if model code is allowed."""
    if model_code_is_allowed():
        return ""
    return (
        f"{what} runs its own code, and {MODEL_CODE} does not allow this; use a version with an "
        f"ONNX form (`onnxserve wrap`), or set {MODEL_CODE}=true if you trust the author"
    )


def require_model_code(what: str) -> None:
    """Raise CodeRefused if the user of this process has switched model code off."""
    if reason := model_code_refusal(what):
        raise CodeRefused(reason)


def switch_model_code_off() -> None:
    """Let MLflow refuse model code in this process and in its children. The other
    functions of this module still return the user's setting.
    """
    if _process.setting is None:
        _process.setting = os.environ.get(MODEL_CODE, "true")
    os.environ[MODEL_CODE] = "false"
