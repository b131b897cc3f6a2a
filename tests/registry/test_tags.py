from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_deploy_plugin.errors import NotFound
from mlflow_deploy_plugin.registry.tags import ERROR_TAG, tag_version


def test_a_version_carries_the_tag(store: Any) -> None:
    tag_version("tiny", "3", ERROR_TAG, "it does not load")
    assert MlflowClient().get_model_version("tiny", "3").tags["onnxserve.error"] == "it does not load"


def test_a_version_that_is_not_there_is_named(store: Any) -> None:
    with pytest.raises(NotFound, match="model tiny version 77 does not exist"):
        tag_version("tiny", "77", ERROR_TAG, "x")
