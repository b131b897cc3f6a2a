"""MLmodel folders of the stock onnx flavor, and a case to follow."""

from collections.abc import Callable
from pathlib import Path

import pytest

from support.following import Case, World
from support.models import write_model


@pytest.fixture
def make_model() -> Callable[..., Path]:
    return lambda folder, model_id="m-1": write_model(folder, model_id=model_id)


@pytest.fixture
def case(tmp_path: Path, make_model: Callable[..., Path]) -> Case:
    (tmp_path / "state").mkdir()
    return Case(tmp_path / "state", World(make_model, tmp_path / "versions"))
