"""The picture of the last windows, whatever their length and number."""

import io
import math
import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import matplotlib.image
import pytest

from mlflow_deploy_plugin.monitoring.reports.history import PastWindow, TrendLine, draw_trend, to_metrics, trend_lines
from mlflow_deploy_plugin.monitoring.result import Finding
from tests.support.results import result_of

SCORE = TrendLine("largest score", "statistic", "threshold")
START = datetime(2013, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize("length", [timedelta(minutes=1), timedelta(days=1)])
def test_a_few_windows_have_an_axis_of_times(length: timedelta) -> None:
    for count in (2, 3):
        figures = {"statistic": 1.0, "threshold": 3.0}
        windows = [PastWindow(START + length * number, "no drift", figures) for number in range(count)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a command would print it
            assert draw_trend([SCORE], windows, length).startswith(b"\x89PNG")


def test_each_column_that_is_named_has_a_line() -> None:
    segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    gone = Finding("wind", "presence", "drift", "in the reference, not in the window", 1.0, 0.0, change="gone")
    missing = Finding("humid", "distribution", "drift", "", 4.0, 3.0)
    worse = Finding("humid", "missing", "drift", "", 8.0, 3.0)
    result = result_of(9, temperature=9.0, noise=1.0, findings=(segment, gone, worse, missing))
    figures = {**to_metrics(result), "drift_score/temperature": 9.0}

    drawn = trend_lines(result, figures)

    assert [(one.title, one.value) for one in drawn] == [
        ("largest score of a column", "statistic"),
        ("temperature", "drift_score/temperature"),
        ("temperature (carrier=AA)", "distribution_score/temperature/carrier_AA"),
        ("wind: gone", "presence_score/wind"),
        ("humid", "missing_score/humid"),
    ]
    assert {one.value for one in drawn} <= set(figures)
    assert trend_lines(result_of(9, temperature=1.0), {}) == drawn[:1]


def test_each_requirement_has_a_line_and_so_has_what_is_named_beside_them() -> None:
    f1 = Finding("f1", "criterion", "kept", "", 0.9, 0.5)
    of_segment = Finding("f1", "criterion", "violated", "", 0.3, 0.5, "carrier=AA")
    kept = Finding("f1", "criterion", "kept", "", 0.9, 0.5, "carrier=UA")
    unknown = Finding("roc_auc", "criterion", "not judged", "", None, 0.5)
    column = Finding("wind", "missing", "drift", "", 8.0, 3.0)
    result = result_of(9, kind="data_quality", findings=(of_segment, column, f1, kept, unknown))

    drawn = trend_lines(result, to_metrics(result))

    assert [(one.title, one.value, one.threshold) for one in drawn] == [
        ("f1 (carrier=AA)", "criterion/f1/carrier_AA", "criterion_threshold/f1/carrier_AA"),
        ("wind", "missing_score/wind", "threshold"),
        ("f1", "criterion/f1", "criterion_threshold/f1"),
    ]


def test_every_column_that_an_alert_names_has_a_line() -> None:
    scores: dict[str, Any] = {f"column_{number}": 9.0 - number / 10 for number in range(12)}
    result = result_of(9, **scores)

    drawn = trend_lines(result, to_metrics(result))

    assert [one.title for one in drawn[1:]] == [f"column_{number}" for number in range(5)]


def test_a_window_with_a_requirement_that_could_not_be_told_is_grey_in_its_line() -> None:
    figures = {"criterion/f1": 0.6, "criterion_threshold/f1": 0.5}
    told = [{"criterion_state/f1": 0.0}, {"criterion_state/f1": 0.5}, {"criterion_state/f1": 1.0}, {}]
    windows = [PastWindow(START + timedelta(days=day), "violated", figures | one) for day, one in enumerate(told)]

    _, _, colours = TrendLine("f1", "criterion/f1", "criterion_threshold/f1", "criterion_state/f1").points(windows)

    assert colours == ["#1a7f37", "#9a9a9a", "#cf222e", "#cf222e"]


def test_a_column_that_is_gone_has_a_line_from_when_it_was_there() -> None:
    gone = {"presence_score/wind": 1.0}
    windows = [
        PastWindow(START, "no drift", {"statistic": 1.0}),
        PastWindow(START + timedelta(days=1), "drift", gone),
        PastWindow(START + timedelta(days=2), "not judged", {}),
    ]

    values, bounds, colours = TrendLine("wind: gone", "presence_score/wind", is_column=True).points(windows)

    assert values[:2] == [0.0, 1.0]
    assert math.isnan(values[2])
    assert bounds == [0.0, 0.0, 0.0]
    assert colours[:2] == ["#1a7f37", "#cf222e"]


def red_and_green(picture: bytes) -> tuple[int, int]:
    """Return how many pixels have the colours of alarms and of what is fine."""
    pixels = (matplotlib.image.imread(io.BytesIO(picture))[..., :3] * 255).round()
    red, green = (int((pixels == colour).all(axis=-1).sum()) for colour in ((0xCF, 0x22, 0x2E), (0x1A, 0x7F, 0x37)))
    return red, green


def test_a_column_is_red_where_it_is_beyond_the_threshold_itself() -> None:
    windows = [PastWindow(START + timedelta(days=day), "drift", {"drift_score/x": 1.0}) for day in range(3)]

    drawn = [TrendLine("x", "drift_score/x", "threshold", is_column=is_column) for is_column in (False, True)]
    whole, column = (red_and_green(draw_trend([one], windows, timedelta(days=1))) for one in drawn)

    assert whole[0] > 0 == whole[1]
    assert column[1] > 0 == column[0]
