"""Training samples as references, from the server or downloaded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlflow_deploy_plugin.errors import InvalidArtifact
from mlflow_deploy_plugin.monitoring.drift.references import load_reference
from mlflow_deploy_plugin.monitoring.request import WindowRequest
from mlflow_deploy_plugin.spec import MonitorSpec
from tests.monitoring.conftest import serve, write_model
from tests.monitoring.drift.sketches.test_sketch import assert_same
from tests.support.inference_log import ENDPOINT, MODEL

from .conftest import DAY


def test_a_model_without_a_reference_is_an_error_that_says_what_to_do(ask: Callable[..., Any], tmp_path: Path) -> None:
    serve(tmp_path / "home" / "deployments" / ENDPOINT, write_model(tmp_path / "models" / "2", None), "2")

    with pytest.raises(InvalidArtifact, match="version 2 has no reference to compare with; log it with"):
        ask(version="2")


def test_a_version_that_is_not_served_is_downloaded_once(world: Any) -> None:
    shutil.rmtree(world.state_dir)
    request = WindowRequest(ENDPOINT, "drift", MonitorSpec(), DAY, 1, world.settings)
    first = load_reference(request, MODEL, "1")
    shutil.rmtree(world.model_folder)

    again = load_reference(request, MODEL, "1")

    assert (again.model_id, again.bins_key) == (world.model_id, first.bins_key)
    for one, other in zip(first.pieces.windows, again.pieces.windows, strict=True):
        assert_same(one, other)
    for path in (world.settings.cache_path / "references").glob("*.parquet"):
        path.write_bytes(b"broken")
    assert_same(load_reference(request, MODEL, "1").pieces.total, first.pieces.total)
