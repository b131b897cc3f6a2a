"""The picture of the last windows, whatever their length and number."""

import warnings
from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.monitoring.reports.trend import PastWindow, Series, trend_picture

SCORE = Series("largest score", "statistic", "threshold")
START = datetime(2013, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize("length", [timedelta(minutes=1), timedelta(days=1)])
def test_a_few_windows_have_an_axis_of_times(length: timedelta) -> None:
    for count in (2, 3):
        figures = {"statistic": 1.0, "threshold": 3.0}
        windows = [PastWindow(START + length * number, "no drift", figures) for number in range(count)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a command would print it
            assert trend_picture([SCORE], windows, length).startswith(b"\x89PNG")
