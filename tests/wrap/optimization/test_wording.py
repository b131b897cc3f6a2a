"""The wording of errors of `optimize` and `profile`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import mlflow_deploy_plugin as onnxserve
from mlflow_deploy_plugin.wrap.optimization.profiler import profile
from tests.support.messages import message_of
from tests.support.networks import write_network

OPTIONS: dict[str, tuple[Callable[..., object], dict[str, Any], str]] = {
    "no form": (
        onnxserve.optimize,
        {},
        "set a form: int8 (dynamic or static), fp16 or prune; or auto, which tries all forms",
    ),
    "an unknown form": (
        onnxserve.optimize,
        {"int8": "tiny"},
        "int8: 'tiny' is neither dynamic nor static",
    ),
    "two forms of a weight": (
        onnxserve.optimize,
        {"int8": "dynamic", "fp16": True},
        "int8 and fp16 cannot be combined: a weight has either 8 or 16 bits",
    ),
    "a share of more than all": (
        onnxserve.optimize,
        {"prune": 1.5},
        "prune: 1.5 is not a share between 0 and 1",
    ),
    "a form next to auto": (
        onnxserve.optimize,
        {"auto": True, "fp16": True},
        "auto tries all forms: do not set int8, fp16 or prune",
    ),
    "a limit below zero": (
        onnxserve.optimize,
        {"fp16": True, "max_loss": -1.0},
        "max_loss: -1 is below 0",
    ),
    "a number of rows that is not measured": (
        onnxserve.optimize,
        {"fp16": True, "rows": 7},
        "rows: 7 is not one of the measured sizes 1, 8, 1000",
    ),
    "a folder without a name": (
        onnxserve.optimize,
        {"fp16": True},
        "net is not a registered version: set the name of the form (register)",
    ),
    "a name that MLflow refuses": (
        onnxserve.optimize,
        {"fp16": True, "register": "a/b"},
        "'a/b' is not a valid name for a registered model: / and : are not allowed",
    ),
    "no rows": (profile, {"rows": 0}, "rows: 0 is less than 1"),
    "a file that does not exist": (
        profile,
        {"data": "gone.parquet"},
        "the dataset gone.parquet does not exist",
    ),
    "no run to log to": (profile, {"log": True}, "net has no run in MLflow to log the profile to"),
}


@pytest.mark.parametrize(
    ("function", "options", "message"),
    OPTIONS.values(),
    ids=OPTIONS,
)
def test_a_refusal_names_the_option_and_the_expected_value(
    function: Callable[..., object],
    options: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_network(Path("net"))
    assert message_of(partial(function, "net", **options)).replace(f"{tmp_path}/", "") == message
