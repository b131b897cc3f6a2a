"""MLmodel folders of the stock onnx flavor."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.models import write_model


@pytest.fixture
def make_model() -> Callable[..., Path]:
    return lambda folder, model_id="m-1": write_model(folder, model_id=model_id)
