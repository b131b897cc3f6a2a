"""The wording of the errors of image builds."""

from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.core.mlmodel import INPUT_EXAMPLE
from mlflow_deploy_plugin.ship.images.build import planned_image
from mlflow_deploy_plugin.ship.images.trial import try_image
from tests.support.messages import message_of
from tests.support.models import tensor_model, write_model
from tests.support.pyfuncs import save_pyfuncs

OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "a model that cannot move": (
        {"follow": True},
        (
            "model cannot move: --follow requires a stage, an alias or a tag, such as "
            "models:/X@champion"
        ),
    ),
    "a base that is not used": (
        {"base_image": "a", "server_image": "b"},
        "--base-image has no effect with --server-image, because no server image is built",
    ),
    "a folder that does not exist": (
        {"model_uri": "gone"},
        (
            "the folder gone does not exist; a registered model is models:/gone@ALIAS, "
            "models:/gone/Production or models:/gone/VERSION"
        ),
    ),
    "a model without an ONNX form": (
        {"model_uri": "days"},
        (
            "days has no ONNX form, and the image has no library to run its code: wrap it "
            "(onnxserve wrap), or let MLflow build an image with its environment (mlflow models "
            "build-docker)"
        ),
    ),
}


@pytest.mark.parametrize(("options", "message"), OPTIONS.values(), ids=OPTIONS)
def test_refusal_names_the_option_and_a_remedy(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensor_model(Path("model"))
    save_pyfuncs(tmp_path, ["days"])
    fields = {"model_uri": "model", **options}
    refusal = message_of(lambda: planned_image(**fields).__enter__())
    assert refusal.replace(f"{tmp_path}/", "") == message


def test_rows_that_cannot_test_an_image_are_refused_with_the_reason(tmp_path):
    folder = write_model(
        tmp_path / "sums", "sums (float[N] x, float[M] z) => (float[N] y) { y = Add(x, z) }"
    )
    (folder / INPUT_EXAMPLE).write_text('{"inputs": {"x": [1]}}')
    assert message_of(lambda: try_image("sums:1", folder)) == (
        "--test: example rows are refused: tensor 'z' is missing; the model needs x, z; log a "
        "valid input_example"
    )
