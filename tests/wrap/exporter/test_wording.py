"""The wording of export errors."""

from pathlib import Path
from typing import Any

import pytest

import mlflow_deploy_plugin as onnxserve
from tests.support.messages import message_of

MESSAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "an unknown format": (
        "pickle",
        {},
        (
            "the format 'pickle' is unknown; supported are onnx, ort, wheel, bundle, conda, "
            "tflite, pmml, desktop"
        ),
    ),
    "wheels for another format": (
        "onnx",
        {"wheels": "wheels"},
        "wheels are only supported for the format bundle, but the format is onnx",
    ),
    "a name for another format": (
        "onnx",
        {"name": "m"},
        "a package name is only supported for the format wheel, but the format is onnx",
    ),
    "a folder without wheels": ("bundle", {"wheels": "."}, ". contains no wheels (*.whl)"),
    "no name of a package": (
        "wheel",
        {"name": "!!"},
        "'!!' is not a valid name of a Python package; set --name",
    ),
    "the name of another package": (
        "wheel",
        {"name": "statistics"},
        "'statistics' is not a valid name of a Python package; set --name",
    ),
    "rows of other columns": (
        "onnx",
        {"rows": {"carrier": ["a"]}},
        (
            "the rows do not match the model: columns 'distance', 'hour', 'late' are missing; the "
            "model needs carrier, distance, hour, late"
        ),
    ),
    "a file that does not exist": (
        "onnx",
        {"rows": "none.csv"},
        "the file none.csv cannot be read: No such file or directory",
    ),
    "a file that exists": ("onnx", {"path": "taken"}, "taken exists; specify another path"),
}


@pytest.mark.parametrize(
    ("form", "options", "message"),
    MESSAGES.values(),
    ids=MESSAGES,
)
def test_a_refusal_names_the_option_and_the_expected_value(
    form: Any,
    options: dict[str, Any],
    message: str,
    mixed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").touch()
    arguments = {"path": "out", **options}
    refusal = message_of(lambda: onnxserve.export(str(mixed), form, **arguments))
    assert refusal.replace(f"{tmp_path}/", "") == message
