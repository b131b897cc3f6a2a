"""The picture of a report: lines of scores and requirements, and levels."""

import io
import math
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import matplotlib.image
import numpy as np
import pytest

from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.reports.trend import TrendLine, draw_trend, level_lines, trend_lines
from mlflow_deploy_plugin.watch.result import Finding, ReportData, State
from mlflow_deploy_plugin.watch.sequential.evidence import (
    Evidence,
    LevelSeries,
    Onset,
)
from tests.support.refusals import mentions
from tests.support.results import FIRST, past_of, result_of

ALARM = "#cf222e"
FINE = "#1a7f37"
GREEN = (0x1A, 0x7F, 0x37)
RED = (0xCF, 0x22, 0x2E)
DAY = timedelta(days=1)
START = datetime(2013, 6, 30, tzinfo=UTC)


def score(*values, threshold=3.0, length=DAY):
    """Return the line of the largest score, with a value per window."""
    starts = [START + length * number for number in range(len(values))]
    known = [math.nan if value is None else value for value in values]
    return TrendLine(
        "largest score",
        starts,
        known,
        np.full((1, len(values)), threshold),
        [ALARM if value > threshold else FINE for value in known],
        starts[-1],
    )


@pytest.mark.parametrize(("length", "count"), [(timedelta(minutes=1), 2), (timedelta(days=1), 3)])
def test_few_windows_have_a_time_axis(length, count):
    line = score(*[1.0] * count, length=length)

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # A command line would print the text.
        assert draw_trend([line], length)[0].png.startswith(b"\x89PNG")


def lines_of(result, *past, **given):
    return trend_lines(result, past_of(*past, result), **given)


def test_each_drifted_column_has_a_line():
    segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    gone = Finding("wind", "presence", "drift", "", 1.0, 0.0, change="gone")
    missing = Finding("humid", "distribution", "drift", "", 4.0, 3.0)
    worse = replace(missing, check="missing", value=8.0)
    findings = (segment, gone, worse, missing)

    drawn = lines_of(result_of(9, temperature=9.0, noise=1.0, findings=findings))

    assert [(line.title, line.values, line.bounds.tolist()) for line in drawn] == [
        ("largest score of a column, in SD", [9.0], [[3.0]]),
        ("temperature, score in SD", [9.0], [[3.0]]),
        ("humid, score in SD", [8.0], [[3.0]]),
        ("temperature (carrier=AA), score in SD", [5.0], [[3.0]]),
        ("wind: gone", [1.0], [[0.0]]),
    ]


def test_violated_requirements_have_the_first_lines():
    f1 = Finding("f1", "criterion", "kept", "", 0.9, 0.5)
    violated = replace(f1, state="violated", value=0.3, segment="carrier=AA")
    unknown = Finding("roc_auc", "criterion", "not judged", "", None, 0.5)
    column = Finding("wind", "missing", "drift", "", 8.0, 3.0)

    findings = (violated, column, f1, replace(f1, segment="carrier=UA"), unknown)
    drawn = lines_of(result_of(9, kind="drift", findings=findings))

    assert [(line.title, line.values, line.bounds.tolist()) for line in drawn] == [
        ("f1 (carrier=AA)", [0.3], [[0.5]]),
        ("wind, score in SD", [8.0], [[3.0]]),
        ("f1", [0.9], [[0.5]]),
    ]


def test_five_worst_columns_have_lines():
    scores = {f"column_{number}": 9.0 - number / 10 for number in range(12)}

    drawn = lines_of(result_of(9, **scores))

    assert [line.title for line in drawn[1:]] == [
        f"column_{number}, score in SD" for number in range(5)
    ]


def test_colours_show_the_state_of_the_requirement():
    states: list[State] = ["kept", "cannot tell", "violated"]
    results = [
        result_of(
            day, state="violated", findings=(Finding("f1", "criterion", state, "", 0.6, 0.5),)
        )
        for day, state in enumerate(states)
    ]

    (line,) = lines_of(results[-1], *results[:-1])

    assert line.colours == [FINE, "#9a9a9a", ALARM]


def test_missing_column_keeps_its_earlier_values():
    gone = Finding("wind", "presence", "drift", "", 1.0, 0.0, change="gone")
    of_earlier_release = result_of(8, state="drift", evidence=Evidence(alarms=("wind",)))
    past = result_of(6, wind=5.0), result_of(7, state="not judged"), of_earlier_release

    *_, line = lines_of(result_of(9, findings=(gone,)), *past)

    assert line.title == "wind: gone"
    np.testing.assert_array_equal(line.values, [0.0, math.nan, math.nan, 1.0])
    assert line.bounds[0, :2].tolist() == [0.0, 0.0]
    assert (line.colours[0], line.colours[3]) == (FINE, ALARM)


def test_picture_describes_the_newest_value():
    single = replace(score(None, 6.5, None), title="a column of one value")

    (picture,) = draw_trend([score(1.0, 6.5, None), single], DAY)

    assert picture.words == "largest score: newest 6.5, threshold 3, an alarm in 1 of 2 windows"


def height_of_marks(picture, colour):
    """Return the height of the part of the picture with marks of the colour, in
    pixels.
    """
    pixels = (matplotlib.image.imread(io.BytesIO(picture))[..., :3] * 255).round()
    rows = (pixels == colour).all(axis=-1).any(axis=1).nonzero()[0]
    return int(rows.max() - rows.min())


USUAL = [1.0, 2.0] * 20


def test_outlier_does_not_flatten_other_windows():
    outliers = {0: 440.0, 20: -440.0, 39: 4e20}
    days = [[*USUAL[:day], value, *USUAL[day + 1 :]] for day, value in outliers.items()]

    calm, *pictures = draw_trend([score(*values) for values in (USUAL, *days)], DAY)

    for picture in pictures:
        assert height_of_marks(picture.png, GREEN) > 0.6 * height_of_marks(calm.png, GREEN)
        assert mentions(picture.words, "newest")


def test_lasting_alarms_are_not_cut():
    (picture,) = draw_trend([score(*USUAL, *[30.0, 60.0] * 4)], DAY)

    assert height_of_marks(picture.png, RED) > 100


def shift(state="drift"):
    """Return the finding of a shift of `delay`."""
    return Finding("delay", "shift", state, "+2.3 deviations", 2.3 if state == "drift" else None)


def level(key, values, usual=3.0, has_onset=False):
    """Return a level on the days up to the tenth, with the usual level and a deviation
    of 0.5.
    """
    starts = [FIRST + day * DAY for day in range(11 - len(values), 11)]
    onset = Onset(starts[-4], starts[-3], starts[-6], starts[-2]) if has_onset else None
    return LevelSeries(
        f"{key}, mean", starts, values, [usual] * len(values) if usual else (), 0.5, onset, key
    )


def levels_of(*levels):
    """Return the tenth day with these levels and a shift of `delay`, also in the two
    days before.
    """
    findings = (shift(), Finding("wind", "distribution", "drift", "", 5.0, 3.0, "carrier=AA"))
    results = [
        result_of(day, delay=1.0, findings=(shift("drift" if day > 7 else "no drift"),))
        for day in range(10)
    ]
    this = result_of(10, delay=1.0, findings=findings, report=ReportData(levels=levels))
    return this, past_of(*results, this)


def alarm_days(line):
    days = zip(line.starts, line.colours, strict=True)
    return [start.day for start, colour in days if colour == ALARM]


def test_level_replaces_the_score_of_its_column():
    delay = level("delay", [3.0] * 7 + [5.0] * 4, has_onset=True)
    result, windows = levels_of(
        delay, replace(level("", [0.8] * 11, None), title="accuracy, estimated")
    )

    lines = level_lines(result, windows)
    scores = trend_lines(result, windows, lines)
    pictures = draw_trend([*lines, *scores], DAY)

    assert [line.title for line in scores] == [
        "largest score of a column, in SD",
        "wind (carrier=AA), score in SD",
    ]
    assert alarm_days(lines[0]) == [9, 10, 11]
    assert alarm_days(lines[1]) == []
    since = "8 July 2013 (95 % interval: 6 to 9 July 2013, if it was a step)"
    assert mentions(pictures[0].words, since, "newest 5, usual 2 to 4")
    assert [picture.caption for picture in pictures] == [
        "delay, mean, since the window of 8 July 2013",
        "accuracy, estimated",
        "largest score of a column, in SD",
    ]
    assert all(height_of_marks(pictures[0].png, colour) for colour in (RED, GREEN))


def test_level_shows_changes_unlike_alarms():
    result, windows = levels_of(level("delay", [3.0] * 11))
    windows[-1] = replace(windows[-1], state="changed")

    (line,) = level_lines(result, windows)

    assert line.colours[-4:] == [FINE, ALARM, ALARM, "#9a6700"]


def test_level_describes_the_judged_window():
    result, windows = levels_of(level("delay", [3.0, 3.0, 5.0, 4.0]))
    earlier = replace(result, window=Window(result.window.start - DAY, result.window.start))

    (line,) = level_lines(earlier, windows)

    assert mentions(line.describe(), "newest 5")


def test_level_of_a_segment_has_its_alarms():
    result, windows = levels_of(level("carrier=AA/wind", [3.0] * 11))

    lines = level_lines(result, windows)

    assert alarm_days(lines[0]) == [11]
    titles = [line.title for line in trend_lines(result, windows, lines)]
    assert not any(title.startswith("wind (carrier=AA)") for title in titles)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("$a_{$", [1e308, -1e308, 1.0]),
        ("price$\\frac$", [1e308, 0.0]),
        ("two\nlines", [math.inf, 1.0, 2.0]),
        ("", [5e-324, 0.0]),
        ("x" * 5_000, [3.0, 5.0]),
    ],
)
def test_levels_of_any_name_and_size_are_drawn(name, values):
    result, windows = levels_of(level(name, values * 5, has_onset=True))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_trend(level_lines(result, windows), DAY)


def test_levels_show_the_last_sixty_windows():
    result, windows = levels_of(level("delay", [3.0, math.nan] * 40))

    (line,) = level_lines(result, windows)

    assert len(line.starts) == len(line.values) == line.bounds.shape[1] == 60


def test_shift_without_a_level_has_no_line():
    drawn = lines_of(
        result_of(10, findings=(replace(shift(), subject="relations between columns"),))
    )

    assert [line.title for line in drawn] == ["largest score of a column, in SD"]


def test_single_value_has_no_panel():
    result, windows = levels_of(level("delay", [math.nan] * 10 + [5.0]))

    drawn = draw_trend([*level_lines(result, windows), score(*[None] * 10, 6.5)], DAY)

    assert drawn == []


def test_logarithmic_level_is_shown_as_a_number():
    rows = replace(level("number of rows", [math.log(400.0)] * 10), is_logarithmic=True)
    result, windows = levels_of(replace(rows, usual=[math.log(300.0)] * 10, deviation=0.0))

    (picture,) = draw_trend(level_lines(result, windows), DAY)

    assert mentions(picture.words, "newest 400", "usual 300 to 300")
