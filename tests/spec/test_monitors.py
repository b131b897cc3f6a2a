"""Tests of the part of the log that a monitor reads."""

from datetime import timedelta
from typing import Any

from mlflow_deploy_plugin.spec import MonitorSpec


def test_rows_of_earlier_windows_are_read_for_what_is_estimated_alone() -> None:
    def reads(figure: str, **fields: Any) -> timedelta:
        return MonitorSpec(kind="performance", require=(figure,), every="1h", grace="5m", **fields).max_row_age

    waited = timedelta(hours=1, minutes=5)
    assert reads("rmse<=3") == waited
    assert reads("f1>=0.7") == waited + timedelta(hours=3)  # The figure needs the three windows before its window.
    assert reads("f1>=0.7", labels_within="90m") == waited + timedelta(minutes=90) + timedelta(hours=4)
