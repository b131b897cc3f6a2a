"""An endpoint with a weak model, and a project that trains better models."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.retraining import RetrainingWorld, retraining_world
from tests.support.tracking import NewDatabase, tracking_at


@pytest.fixture
def world(
    tmp_path: Path,
    new_database: NewDatabase,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[RetrainingWorld]:
    monkeypatch.setenv("ONNXSERVE_HOME", str(tmp_path / "home"))
    # MLflow stores the artifacts of a database's experiments in the working directory.
    monkeypatch.chdir(tmp_path)
    with tracking_at(new_database(tmp_path)), retraining_world(tmp_path) as new_world:
        yield new_world
