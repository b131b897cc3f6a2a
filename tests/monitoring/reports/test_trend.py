"""The picture of the last windows, whatever their length and number."""

import io
import warnings
from datetime import UTC, datetime, timedelta

import matplotlib.image
import pytest

from mlflow_deploy_plugin.monitoring.judgement import Finding
from mlflow_deploy_plugin.monitoring.reports.metrics import metrics_of
from mlflow_deploy_plugin.monitoring.reports.trend import PastWindow, Series, series_of, trend_picture, with_since
from support.judgements import FIRST, judgement_of

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


def past(*scores: float | None, column: str = "temperature") -> list[PastWindow]:
    """Days up to the last one before day 9, each with the score of a column; None: it was not judged."""
    days = range(9 - len(scores), 9)
    made = [
        (day, judgement_of(day, **({column: score} if score is not None else {"state": "not judged"})))
        for day, score in zip(days, scores, strict=True)
    ]
    return [PastWindow(one.window.start, one.state, metrics_of(one)) for _, one in made][::-1]


@pytest.mark.parametrize(
    ("scores", "since"),
    [
        ((), 9),
        ((1.0, 1.0), 9),
        ((1.0, 5.0, 4.0), 7),
        ((5.0, 1.0, 4.0), 8),
        ((1.0, 5.0, None, 4.0), 6),  # one that was not judged says nothing
        ((5.0, 5.0, None), 6),
        ((None, None), 9),
    ],
)
def test_an_alarm_says_since_when_its_column_is_one_without_a_break(
    scores: tuple[float | None, ...], since: int
) -> None:
    told = with_since(judgement_of(9, temperature=9.0, noise=1.0), past(*scores))

    assert [finding.since for finding in told.findings] == [(FIRST + timedelta(days=since)).isoformat(), ""]


def test_of_a_column_any_check_counts_and_of_another_column_or_segment_none() -> None:
    gone = Finding("temperature", "presence", "drift", "in the reference, not in the window", 1.0, 0.0)
    before = [judgement_of(7, findings=(gone,)), judgement_of(8, temperature=4.0)]
    windows = [PastWindow(one.window.start, one.state, metrics_of(one)) for one in before]
    in_segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    other = Finding("a/b", "distribution", "drift", "", 5.0, 3.0)
    judgement = judgement_of(9, temperature=9.0, findings=(in_segment, other))

    told = with_since(judgement, windows)

    assert [finding.since[8:10] for finding in told.findings] == ["08", "10", "10"]
    assert with_since(judgement_of(9, temperature=1.0), windows) == judgement_of(9, temperature=1.0)


def test_each_column_that_is_named_has_a_line() -> None:
    segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    gone = Finding("wind", "presence", "drift", "in the reference, not in the window", 1.0, 0.0)
    missing = Finding("humid", "distribution", "drift", "", 4.0, 3.0)
    worse = Finding("humid", "missing", "drift", "", 8.0, 3.0)
    judgement = judgement_of(9, temperature=9.0, noise=1.0, findings=(segment, gone, worse, missing))
    figures = {**metrics_of(judgement), "drift_score/temperature": 9.0}

    drawn = series_of(judgement, figures)

    assert [(one.title, one.value) for one in drawn] == [
        ("largest score of a column", "statistic"),
        ("temperature", "drift_score/temperature"),
        ("temperature (carrier=AA)", "distribution_score/temperature/carrier_AA"),
        ("humid", "missing_score/humid"),
    ]
    assert {one.value for one in drawn} <= set(figures)
    assert series_of(judgement_of(9, temperature=1.0), {}) == drawn[:1]


def red_and_green(picture: bytes) -> tuple[int, int]:
    """How many pixels have the colours of alarms and of what is fine."""
    pixels = (matplotlib.image.imread(io.BytesIO(picture))[..., :3] * 255).round()
    return tuple(int((pixels == colour).all(axis=-1).sum()) for colour in ((0xCF, 0x22, 0x2E), (0x1A, 0x7F, 0x37)))


def test_a_column_is_red_where_it_is_beyond_the_threshold_itself() -> None:
    windows = [PastWindow(START + timedelta(days=day), "drift", {"drift_score/x": 1.0}) for day in range(3)]

    whole, column = (
        red_and_green(trend_picture([Series("x", "drift_score/x", "threshold", is_column)], windows, timedelta(days=1)))
        for is_column in (False, True)
    )

    assert whole[0] > 0 == whole[1]
    assert column[1] > 0 == column[0]
