"""The history of a finding, equal for every kind of monitor; metric names, and the picture."""

import io
import math
import warnings
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import matplotlib.image
import pytest

from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.reports.history import (
    PastWindow,
    TrendLine,
    add_history,
    draw_trend,
    level_lines,
    to_metrics,
    trend_lines,
)
from mlflow_deploy_plugin.watch.result import Finding, MonitorResult, ReportData, State, describe_span
from mlflow_deploy_plugin.watch.sequential.evidence import LevelSeries, Onset
from tests.support.refusals import mentions
from tests.support.results import FIRST, result_of

DAY = timedelta(days=1)


def accuracy(state: State, value: float | None, segment: str = "") -> Finding:
    return Finding("accuracy", "criterion", state, f"{value} on 500 rows", value, 0.8, segment)


def judged(day: int, *findings: Finding, kind: str = "performance") -> MonitorResult:
    """Return the result of a day with the state and reason of its first finding."""
    first = findings[0]
    reason = f"{first.subject}: {first.reason}, and 1 more"
    return result_of(day, kind=kind, state=first.state, findings=findings, reason=reason)


def past_of(*judgements: MonitorResult) -> list[PastWindow]:
    return [PastWindow(one.window.start, one.state, to_metrics(one)) for one in judgements]


def days(*windows: tuple[State, float | None]) -> list[PastWindow]:
    """Return the days up to the ninth, one per window: state and accuracy, with the requirement 0.8."""
    first = 10 - len(windows)
    return past_of(*(judged(first + place, accuracy(*window)) for place, window in enumerate(windows)))


@pytest.mark.parametrize(
    ("windows", "change", "since", "in_a_row"),
    [
        ([], "", 10, 1),
        ([("kept", 0.9)], "0.9 (the window before) → 0.7, lower", 10, 1),
        (
            [("kept", 0.9), ("kept", 0.84), ("cannot tell", 0.82), ("violated", 0.75), ("violated", 0.72)],
            "0.84 (the median of the 3 windows before) → 0.7, lower",
            8,
            3,
        ),
        (
            [("kept", 0.9), ("violated", 0.7), ("not judged", None), ("cannot tell", 0.78)],
            "0.9 (the window before) → 0.7, lower",
            7,
            2,
        ),
        (
            [("violated", 0.6), ("kept", 0.85), ("kept", 0.7)],
            "0.7 (the median of the 3 windows before) → 0.7, unchanged",
            10,
            1,
        ),
        ([("violated", 0.6), ("violated", 0.6)], "", 8, 3),
    ],
    ids=["first", "one", "in a row", "undecided", "unchanged", "ever since"],
)
def test_a_violated_figure_says_from_what_it_went_and_since_when(
    windows: list[Any], change: str, since: int, in_a_row: int
) -> None:
    (found,) = add_history(judged(10, accuracy("violated", 0.7)), days(*windows)).findings

    first = FIRST + since * DAY
    assert (found.change, found.in_a_row) == (change, in_a_row)
    assert (found.since, found.since_end) == (first.isoformat(), (first + DAY).isoformat())


def test_a_figure_that_is_kept_says_what_became_of_it_and_no_since() -> None:
    (found,) = add_history(judged(10, accuracy("kept", 0.95)), days(("kept", 0.9), ("violated", 0.7))).findings

    assert mentions(found.change, "0.8", "median of the 2 windows", "0.95", "higher")
    assert (found.since, found.in_a_row, found.history) == ("", 0, found.change)


@pytest.mark.parametrize(
    ("days", "change"),
    [
        (21, "0.6 (the median of the 3 Thursdays before) → 0.7, higher"),
        (14, "0.9 (the median of the 8 windows before) → 0.7, lower"),
    ],
)
def test_a_figure_is_compared_with_the_same_weekday_if_there_are_three(days: int, change: str) -> None:
    past = [judged(day, accuracy("kept", 0.6 if day % 7 == 3 else 0.9)) for day in range(3, 3 + days)]

    (found,) = add_history(judged(3 + days, accuracy("violated", 0.7)), past_of(*past)).findings

    assert found.change == change


def test_what_a_kind_says_of_the_reference_stands() -> None:
    of_kind = replace(accuracy("violated", 0.7), change="0.8 (the reference) → 0.7, lower")

    (found,) = add_history(judged(10, of_kind), days(("kept", 0.9))).findings

    assert found.change == of_kind.change


def test_the_reason_of_what_is_kept_stays_short() -> None:
    result = add_history(judged(10, accuracy("kept", 0.95)), days(("kept", 0.9)))

    assert mentions(result.reason, "accuracy", "0.95", "1 more")
    assert "window" not in result.reason


def test_the_reason_of_the_judgement_says_what_has_become_of_the_finding_that_it_quotes() -> None:
    result = add_history(judged(10, accuracy("violated", 0.7)), days(("kept", 0.9), ("violated", 0.75)))

    (found,) = result.findings
    assert mentions(found.reason, "0.7", "500 rows")
    since = "since the window of 10 July 2013"
    assert mentions(result.reason, "accuracy", "0.9", "0.7", "lower", since, "window 2", found.reason)


def test_each_segment_stands_beside_its_own_windows_and_what_has_no_value_beside_none() -> None:
    before = past_of(judged(9, accuracy("kept", 0.9), accuracy("kept", 0.6, "carrier=AA")))

    (of_segment,) = add_history(judged(10, accuracy("violated", 0.7, "carrier=AA")), before).findings
    (unknown,) = add_history(judged(10, accuracy("not judged", None)), before).findings

    assert mentions(of_segment.change, "0.6", "0.7", "higher")
    assert unknown.history == ""


def test_a_window_that_another_requirement_violated_does_not_count() -> None:
    f1 = Finding("f1", "criterion", "violated", "", 0.1, 0.5)
    before = past_of(judged(8, accuracy("violated", 0.7)), judged(9, f1, accuracy("cannot tell", 0.78)))
    broken = past_of(judged(8, accuracy("violated", 0.7)), judged(9, f1, accuracy("kept", 0.9)))

    (undecided,) = add_history(judged(10, accuracy("violated", 0.7)), before).findings
    (kept,) = add_history(judged(10, accuracy("violated", 0.7)), broken).findings

    assert (undecided.since[:10], undecided.in_a_row) == ("2013-07-09", 2)
    assert (kept.since[:10], kept.in_a_row) == ("2013-07-11", 1)


def test_columns_whose_metrics_have_the_same_name_are_told_apart() -> None:
    def missing(column: str, state: State, value: float) -> Finding:
        return Finding(f"missing({column})", "criterion", state, "", value, 0.1)

    before = past_of(judged(9, missing("a+b", "violated", 0.3), missing("a*b", "cannot tell", 0.2)))

    now = add_history(judged(10, missing("a+b", "violated", 0.4), missing("a*b", "violated", 0.4)), before).findings

    assert [(one.change, one.in_a_row) for one in now] == [("", 2), ("0.2 (the window before) → 0.4, higher", 1)]


def test_of_data_quality_a_window_without_the_column_among_its_findings_ends_the_row() -> None:
    def missing(column: str, value: float) -> Finding:
        return Finding(f"missing({column})", "criterion", "violated", "", value, 0.1)

    before = past_of(*(judged(day, missing(name, 0.3), kind="data_quality") for day, name in ((8, "a"), (9, "b"))))

    (found,) = add_history(judged(10, missing("a", 0.4), kind="data_quality"), before).findings

    assert (found.change, found.since[:10]) == ("0.3 (the window before) → 0.4, higher", "2013-07-11")


def columns(*scores: float | None) -> list[PastWindow]:
    """Return days up to the eighth, each with the score of a column; None: the column was not judged."""
    said = [{"state": "not judged"} if score is None else {"temperature": score} for score in scores]
    return past_of(*(result_of(day, **one) for day, one in enumerate(said, 9 - len(said))))[::-1]


@pytest.mark.parametrize(
    ("scores", "since", "in_a_row"),
    [
        ((), 9, 1),
        ((1.0, 1.0), 9, 1),
        ((1.0, 5.0, 4.0), 7, 3),
        ((5.0, 1.0, 4.0), 8, 2),
        ((1.0, 5.0, None, 4.0), 6, 3),  # A column that was not judged has no score.
        ((5.0, 5.0, None), 6, 3),
        ((None, None), 9, 1),
    ],
)
def test_an_alarm_of_a_column_says_since_when(scores: tuple[float | None, ...], since: int, in_a_row: int) -> None:
    told = add_history(result_of(9, temperature=9.0, noise=1.0), columns(*scores))

    assert [finding.since for finding in told.findings] == [(FIRST + timedelta(days=since)).isoformat(), ""]
    assert [finding.in_a_row for finding in told.findings] == [in_a_row, 0]


def test_of_a_column_any_check_counts_and_of_another_column_or_segment_none() -> None:
    gone = Finding("temperature", "presence", "drift", "in the reference, not in the window", 1.0, 0.0)
    windows = past_of(result_of(7, findings=(gone,)), result_of(8, temperature=4.0))
    in_segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    other = Finding("a/b", "distribution", "drift", "", 5.0, 3.0)
    result = result_of(9, temperature=9.0, findings=(in_segment, other))

    told = add_history(result, windows)

    assert [finding.since[8:10] for finding in told.findings] == ["08", "10", "10"]
    assert add_history(result_of(9, temperature=1.0), windows) == result_of(9, temperature=1.0)


def shift(state: State = "drift", subject: str = "delay", segment: str = "") -> Finding:
    """Return the finding of a shift that began on 2013-07-04 to 2013-07-06, and probably on 2013-07-05."""
    if state != "drift":
        return Finding(subject, "shift", state, segment=segment)
    start, end, earliest, latest = ((FIRST + day * DAY).isoformat() for day in (4, 5, 3, 6))
    since: dict[str, Any] = {"since": start, "since_end": end, "in_a_row": 6, "since_range": (earliest, latest)}
    return Finding(subject, "shift", state, "+2.3 deviations", 2.3, None, segment, **since)


def test_a_shift_keeps_its_own_start_and_number_of_windows() -> None:
    past = past_of(*(result_of(day, findings=(shift("no drift" if day < 8 else "drift"),)) for day in range(10)))

    told = add_history(result_of(10, findings=(shift(),)), past)

    assert told.findings == (shift(),)
    since = "drift since the window of 5 July 2013 (95 % interval: 4 to 6 July 2013), window 6 in a row"
    assert shift().history == since


def test_the_start_of_a_shift_is_in_the_reason_once_next_to_the_start_of_the_alarm_of_the_window() -> None:
    of_shift = f"delay: {shift().history}; {shift().reason}"
    of_window = Finding("wind", "distribution", "drift", "distance 5", 5.0, 3.0)
    reason = f"wind: {of_window.reason}; lasting shift of {of_shift}"

    only = add_history(result_of(10, findings=(shift(),), reason=of_shift), [])
    both = add_history(result_of(10, findings=(shift(), of_window), reason=reason), past_of(result_of(9, wind=5.0)))

    assert only.reason == of_shift
    since = "drift since the window of 10 July 2013, window 2 in a row"
    assert both.reason == f"wind: {since}; distance 5; lasting shift of {of_shift}"


def test_a_window_with_a_shift_of_the_column_counts_as_an_alarm_of_the_column() -> None:
    past = past_of(*(result_of(day, findings=(shift("no drift" if day < 8 else "drift"),)) for day in range(10)))

    (found,) = add_history(result_of(10, delay=5.0), past).findings

    assert (found.since[:10], found.in_a_row) == ("2013-07-09", 3)


def test_the_start_of_a_shift_within_a_day_has_its_time() -> None:
    start = replace(shift(), since="2013-07-05T14:00:00+00:00", since_end="2013-07-05T15:00:00+00:00")

    assert start.since_text == "5 July 2013, 14:00 to 15:00 UTC (95 % interval: 4 to 6 July 2013)"


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ("2026-08-31", "2026-09-01", "31 August 2026"),
        ("2026-08-29", "2026-09-01", "29 to 31 August 2026"),
        ("2026-08-30", "2026-09-02", "30 August to 1 September 2026"),
        ("2026-12-30", "2027-01-02", "30 December 2026 to 1 January 2027"),
        ("2026-08-31T00:00", "2026-08-31T12:00", "31 August 2026, 00:00 to 12:00 UTC"),
        ("2026-08-31T18:00", "2026-09-01T00:00", "31 August 2026 18:00 to 1 September 2026 00:00 UTC"),
        ("2026-08-31T02:00+02:00", "2026-09-01T02:00+02:00", "31 August 2026"),
    ],
)
def test_a_window_is_described_by_its_first_and_last_day_or_by_its_hours(start: str, end: str, text: str) -> None:
    first, last = (datetime.fromisoformat(time) for time in (start, end))

    assert describe_span(*(time if time.tzinfo else time.replace(tzinfo=UTC) for time in (first, last))) == text


SCORES: dict[str, Any] = {
    "a_b": 1.0,
    "a/b": 2.0,
    "a%b": 3.0,
    "a b": 4.0,
    "\n": 5.0,
    "x" * 300 + "1": 6.0,
    "x" * 300 + "2": 7.0,
}


def test_no_column_is_lost_and_each_keeps_its_name_whatever_their_order_is() -> None:
    metrics = to_metrics(result_of(**SCORES))
    backwards = to_metrics(result_of(**dict(reversed(SCORES.items()))))

    scores = {name: value for name, value in metrics.items() if name.startswith("distribution_score/")}
    assert sorted(scores.values()) == sorted(SCORES.values())
    assert metrics["distribution_score/a_b"] == 1.0
    assert backwards == metrics
    assert max(map(len, metrics)) <= 250


SCORE = TrendLine("largest score", "statistic", "threshold")
START = datetime(2013, 6, 30, tzinfo=UTC)


@pytest.mark.parametrize("length", [timedelta(minutes=1), timedelta(days=1)])
def test_a_few_windows_have_an_axis_of_times(length: timedelta) -> None:
    for count in (2, 3):
        figures = {"statistic": 1.0, "threshold": 3.0}
        windows = [PastWindow(START + length * number, "no drift", figures) for number in range(count)]
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # A command line would print the text.
            assert draw_trend([SCORE], windows, length)[0].startswith(b"\x89PNG")


@pytest.mark.parametrize(("value", "count"), [(1.0, 2), (-123456.78, 3), (2e-7, 40)])
def test_nothing_of_a_picture_is_cut_off_at_its_edges(value: float, count: int) -> None:
    windows = [
        PastWindow(
            START + timedelta(days=day), "no drift", {"statistic": value + value * 1e-6 * day, "threshold": value}
        )
        for day in range(count)
    ]

    picture = matplotlib.image.imread(io.BytesIO(draw_trend([SCORE], windows, timedelta(days=1))[0]))

    assert picture[1:-1, 1:-1, :3].min() < 0.5
    assert all(edge.min() == 1.0 for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]))


def test_each_column_that_is_named_has_a_line() -> None:
    segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    gone = Finding("wind", "presence", "drift", "in the reference, not in the window", 1.0, 0.0, change="gone")
    missing = Finding("humid", "distribution", "drift", "", 4.0, 3.0)
    worse = Finding("humid", "missing", "drift", "", 8.0, 3.0)
    result = result_of(9, temperature=9.0, noise=1.0, findings=(segment, gone, worse, missing))
    figures = {**to_metrics(result), "drift_score/temperature": 9.0}

    drawn = trend_lines(result, figures)

    assert [(one.title, one.value) for one in drawn] == [
        ("largest score of a column, in SD", "statistic"),
        ("temperature, score in SD", "drift_score/temperature"),
        ("temperature (carrier=AA), score in SD", "distribution_score/temperature/carrier_AA"),
        ("wind: gone", "presence_score/wind"),
        ("humid, score in SD", "missing_score/humid"),
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
        ("wind, score in SD", "missing_score/wind", "threshold"),
        ("f1", "criterion/f1", "criterion_threshold/f1"),
    ]


def test_every_column_that_an_alert_names_has_a_line() -> None:
    scores: dict[str, Any] = {f"column_{number}": 9.0 - number / 10 for number in range(12)}
    result = result_of(9, **scores)

    drawn = trend_lines(result, to_metrics(result))

    assert [one.title for one in drawn[1:]] == [f"column_{number}, score in SD" for number in range(5)]


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


def test_the_words_of_a_picture_tell_the_newest_value_that_there_is() -> None:
    windows = [
        PastWindow(START, "no drift", {"statistic": 1.0, "threshold": 3.0}),
        PastWindow(START + timedelta(days=1), "drift", {"statistic": 6.5, "threshold": 3.0, "drift_score/x": 6.5}),
        PastWindow(START + timedelta(days=2), "not judged", {}),
    ]
    lines = [SCORE, TrendLine("a column of one value", "drift_score/x", "threshold")]

    _, words = draw_trend(lines, windows, timedelta(days=1))

    assert mentions(words, "largest score", "6.5", "threshold 3", "1 of 2 windows")


def test_one_value_is_no_trend() -> None:
    judged = PastWindow(START, "drift", {"statistic": 6.5, "threshold": 3.0})
    windows = [judged, PastWindow(START + timedelta(days=1), "not judged", {})]
    assert draw_trend([SCORE], windows, timedelta(days=1)) == (b"", "")


def red_and_green(picture: bytes) -> tuple[int, int]:
    """Return the number of pixels with the colours of alarms and of windows without alarm."""
    pixels = (matplotlib.image.imread(io.BytesIO(picture))[..., :3] * 255).round()
    red, green = (int((pixels == colour).all(axis=-1).sum()) for colour in ((0xCF, 0x22, 0x2E), (0x1A, 0x7F, 0x37)))
    return red, green


def test_a_column_is_red_where_it_is_beyond_the_threshold_itself() -> None:
    windows = [PastWindow(START + timedelta(days=day), "drift", {"drift_score/x": 1.0}) for day in range(3)]

    drawn = [TrendLine("x", "drift_score/x", "threshold", is_column=is_column) for is_column in (False, True)]
    whole, column = (red_and_green(draw_trend([one], windows, timedelta(days=1))[0]) for one in drawn)

    assert whole[0] > 0 == whole[1]
    assert column[1] > 0 == column[0]


def level(title: str, values: list[float], usual: float | None = 3.0, has_onset: bool = False) -> LevelSeries:
    """Return a level on the days up to the tenth, with the usual level and a deviation of 0.5."""
    starts = [FIRST + day * DAY for day in range(11 - len(values), 11)]
    onset = Onset(starts[-4], starts[-3], starts[-6], starts[-2]) if has_onset else None
    return LevelSeries(title, starts, values, [usual] * len(values) if usual else (), 0.5, onset)


def levels_of(*levels: LevelSeries) -> tuple[MonitorResult, list[PastWindow]]:
    """Return the tenth day with these levels and a shift of `delay`, also in the two days before."""
    named = (shift(), Finding("wind", "distribution", "drift", "", 5.0, 3.0, "carrier=AA"))
    results = [result_of(day, delay=1.0, findings=(shift("drift" if day > 7 else "no drift"),)) for day in range(10)]
    this = result_of(10, delay=1.0, findings=named, report=ReportData(levels=levels))
    return this, past_of(*results, this)


def test_a_column_with_a_level_has_its_panel_instead_of_its_score() -> None:
    delay = level("delay, mean", [3.0] * 7 + [5.0] * 4, has_onset=True)
    result, windows = levels_of(delay, level("accuracy, estimated", [0.8] * 11, None))

    lines = level_lines(result, windows)
    scores = trend_lines(result, to_metrics(result), lines)
    picture, words = draw_trend(scores, windows, DAY, lines)

    assert [line.series.title for line in lines] == ["delay, mean", "accuracy, estimated"]
    assert [line.title for line in scores] == ["largest score of a column, in SD", "wind (carrier=AA), score in SD"]
    assert [start.day for start in sorted(lines[0].alarms)] == [9, 10, 11]
    assert not lines[1].alarms
    since = "since the window of 8 July 2013 (95 % interval: 6 to 9 July 2013)"
    assert mentions(words, since, "newest 5, usual 3 ± 1", "newest 0.8;")
    assert words.index("delay, mean") < words.index("accuracy") < words.index("largest score")
    assert min(red_and_green(picture)) > 0


def test_the_description_of_a_level_is_about_the_judged_window_and_not_about_a_later_one_of_the_reference() -> None:
    result, windows = levels_of(level("delay, mean", [3.0, 3.0, 5.0, 4.0]))
    earlier = replace(result, window=Window(result.window.start - DAY, result.window.start))

    (line,) = level_lines(earlier, windows)

    assert mentions(line.describe(), "newest 5")


def test_a_level_of_a_segment_belongs_to_the_alarm_of_the_segment() -> None:
    result, windows = levels_of(level("carrier=AA/wind, mean", [3.0] * 11))

    lines = level_lines(result, windows)

    assert [start.day for start in lines[0].alarms] == [11]
    titles = [line.title for line in trend_lines(result, to_metrics(result), lines)]
    assert not any(title.startswith("wind (carrier=AA)") for title in titles)


def test_a_column_whose_name_begins_with_the_name_of_another_column_has_its_own_level() -> None:
    result, windows = levels_of(level("delay, of arrival, mean", [3.0] * 11))
    other = Finding("delay, of arrival", "distribution", "drift", "", 5.0, 3.0)
    result = replace(result, findings=(*result.findings, other))

    lines = level_lines(result, windows)

    assert not lines[0].alarms
    drawn = [line.value for line in trend_lines(result, {**to_metrics(result), "drift_score/delay": 4.0}, lines)]
    assert "drift_score/delay" in drawn
    assert "distribution_score/delay, of arrival" not in drawn


@pytest.mark.parametrize("name", ["$a_{$", "price$\\frac$", "two\nlines", "", "x" * 5_000])
def test_a_column_of_any_name_has_a_picture(name: str) -> None:
    result, windows = levels_of(level(f"{name}, mean", [3.0] * 7 + [5.0] * 4, has_onset=True))

    assert draw_trend([], windows, DAY, level_lines(result, windows))[0]


@pytest.mark.parametrize("values", [[1e308, -1e308, 1.0], [1e308, 0.0], [math.inf, 1.0, 2.0], [5e-324, 0.0]])
def test_levels_of_any_size_have_a_picture(values: list[float]) -> None:
    result, windows = levels_of(level("delay, mean", values * 5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_trend([], windows, DAY, level_lines(result, windows))[0]


def test_levels_are_drawn_over_the_last_sixty_windows() -> None:
    result, windows = levels_of(level("delay, mean", [3.0, math.nan] * 40))

    (line,) = level_lines(result, windows)

    assert {len(series) for series in (line.series.starts, line.series.values, line.series.usual)} == {60}


def test_a_shift_without_a_level_has_no_score_that_could_be_compared_with_the_threshold() -> None:
    result = result_of(10, findings=(shift(subject="relations between columns"),))

    assert [line.value for line in trend_lines(result, to_metrics(result))] == ["statistic"]


def test_a_long_name_leaves_room_for_the_start_of_the_shift() -> None:
    (line,) = level_lines(*levels_of(level(f"{'long' * 50}, mean", [3.0] * 11, has_onset=True)))

    assert line.title.startswith("longlong")
    assert line.title.endswith("…, since the window of 8 July 2013")


def test_a_level_with_a_single_value_has_no_panel() -> None:
    result, windows = levels_of(level("delay, mean", [math.nan] * 10 + [5.0]))

    assert draw_trend([], windows, DAY, level_lines(result, windows)) == (b"", "")
