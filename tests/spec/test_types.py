"""Durations are read as seconds."""

import pytest

from mlflow_deploy_plugin.spec import (
    duration_seconds,
)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172800)])
def test_durations_are_seconds(text: str, seconds: int) -> None:
    assert duration_seconds(text) == seconds
