"""The history of a finding, equal for every kind of monitor, and its texts."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.watch.history import with_history
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest, describe_span
from mlflow_deploy_plugin.watch.statistics.intervals import overall_state
from tests.support.refusals import mentions
from tests.support.results import FIRST, past_of, result_of

DAY = timedelta(days=1)


def told(result, past):
    """Return the findings of a result with their history in the past windows."""
    spec = MonitorSpec.model_construct(kind=result.kind)
    request = WindowRequest(
        result.endpoint, result.monitor, spec, result.window, 1, Settings(), past=past
    )
    return with_history(request, result.findings)


def accuracy(state, value, segment=""):
    return Finding("accuracy", "criterion", state, f"{value} on 500 rows", value, 0.8, segment)


def judged(day, *findings, kind="performance"):
    """Return the result of a day with the state of its first finding."""
    return result_of(day, kind=kind, state=findings[0].state, findings=findings)


def days(*windows):
    """Return the days up to the ninth, one per window: state and accuracy, with the
    requirement 0.8.
    """
    first = 10 - len(windows)
    return past_of(
        *(judged(first + place, accuracy(*window)) for place, window in enumerate(windows))
    )


@pytest.mark.parametrize(
    ("windows", "change", "since", "in_a_row"),
    [
        ([], "", 10, 1),
        ([("kept", 0.9)], "0.9 (the window before) → 0.7, lower", 10, 1),
        (
            [
                ("kept", 0.9),
                ("kept", 0.84),
                ("cannot tell", 0.82),
                ("violated", 0.75),
                ("violated", 0.72),
            ],
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
def test_violation_has_earlier_value_and_start(windows, change, since, in_a_row):
    (finding,) = told(judged(10, accuracy("violated", 0.7)), days(*windows))

    first = FIRST + since * DAY
    assert (finding.change, finding.in_a_row) == (change, in_a_row)
    assert finding.since == first.isoformat()
    assert finding.since_end == (first + DAY).isoformat()


@pytest.mark.parametrize(
    ("days", "change"),
    [
        (21, "0.6 (the median of the 3 Thursdays before) → 0.7, higher"),
        (14, "0.9 (the median of the 8 windows before) → 0.7, lower"),
    ],
)
def test_figure_is_compared_with_three_equal_weekdays(days, change):
    past = [
        judged(day, accuracy("kept", 0.6 if day % 7 == 3 else 0.9)) for day in range(3, 3 + days)
    ]

    (finding,) = told(judged(3 + days, accuracy("violated", 0.7)), past_of(*past))

    assert finding.change == change


@pytest.mark.parametrize(
    ("state", "value", "texts"),
    [
        ("kept", 0.95, ("accuracy: 0.95 on 500 rows, and 1 more",)),
        (
            "violated",
            0.7,
            (
                "accuracy: 0.9 (the window before) → 0.7, lower; violated",
                "window 2 in a row; 0.7 on 500",
            ),
        ),
        (
            "cannot tell",
            0.79,
            ("0.825 (the median of the 2 windows before) → 0.79, lower; 0.79 on 500 rows",),
        ),
    ],
)
def test_reason_has_the_history(state, value, texts):
    both = accuracy(state, value), accuracy(state, value, "carrier=AA")

    _, reason = overall_state(told(judged(10, *both), days(("kept", 0.9), ("violated", 0.75))))

    assert mentions(reason, *texts)


def test_segment_is_compared_with_its_past():
    before = past_of(judged(9, accuracy("kept", 0.9), accuracy("kept", 0.6, "carrier=AA")))

    (of_segment,) = told(judged(10, accuracy("violated", 0.7, "carrier=AA")), before)
    (unknown,) = told(judged(10, accuracy("not judged", None)), before)

    assert mentions(of_segment.change, "0.6", "0.7", "higher")
    assert unknown.history == ""


@pytest.mark.parametrize(
    ("state", "value", "since", "in_a_row"),
    [("cannot tell", 0.78, "2013-07-09", 2), ("kept", 0.9, "2013-07-11", 1)],
)
def test_other_violated_requirement_does_not_count(state, value, since, in_a_row):
    f1 = Finding("f1", "criterion", "violated", "", 0.1, 0.5)
    before = past_of(judged(8, accuracy("violated", 0.7)), judged(9, f1, accuracy(state, value)))

    (finding,) = told(judged(10, accuracy("violated", 0.7)), before)

    assert (finding.since[:10], finding.in_a_row) == (since, in_a_row)


def columns(*scores):
    """Return days up to the eighth, each with the score of a column; None: the column
    was not judged.
    """
    outcomes = [
        {"state": "not judged"} if score is None else {"temperature": score} for score in scores
    ]
    return past_of(
        *(result_of(day, **outcome) for day, outcome in enumerate(outcomes, 9 - len(outcomes)))
    )


@pytest.mark.parametrize(
    ("scores", "since", "in_a_row"),
    [
        ((), 9, 1),
        ((1.0, 5.0, 4.0), 7, 3),
        ((5.0, 1.0, 4.0), 8, 2),
        ((1.0, 5.0, None, 4.0), 6, 3),  # A column that was not judged has no score.
        ((5.0, 5.0, None), 6, 3),
    ],
)
def test_alarm_of_a_column_has_its_start(scores, since, in_a_row):
    findings = told(result_of(9, temperature=9.0, noise=1.0), columns(*scores))

    assert [finding.since for finding in findings] == [
        (FIRST + timedelta(days=since)).isoformat(),
        "",
    ]
    assert [finding.in_a_row for finding in findings] == [in_a_row, 0]


def test_any_check_of_the_column_counts():
    gone = Finding("temperature", "presence", "drift", "", 1.0, 0.0)
    windows = past_of(result_of(7, findings=(gone,)), result_of(8, temperature=4.0))
    in_segment = Finding("temperature", "distribution", "drift", "", 5.0, 3.0, "carrier=AA")
    other = Finding("a/b", "distribution", "drift", "", 5.0, 3.0)
    result = result_of(9, temperature=9.0, findings=(in_segment, other))

    assert [finding.since[8:10] for finding in told(result, windows)] == ["08", "10", "10"]
    assert told(result_of(9, temperature=1.0), windows) == [*result_of(9, temperature=1.0).findings]


def shift(state="drift"):
    """Return the finding of a shift that began on 2013-07-04 to 2013-07-06, and
    probably on 2013-07-05.
    """
    if state != "drift":
        return Finding("delay", "shift", state)
    start, end, *limits = ((FIRST + day * DAY).isoformat() for day in (4, 5, 3, 6))
    since: dict[str, Any] = {"since": start, "since_end": end, "since_range": (*limits,)}
    return Finding("delay", "shift", state, "+2.3 deviations", 2.3, in_a_row=6, **since)


def test_shift_keeps_its_start():
    states = ["no drift"] * 8 + ["drift"] * 2
    past = past_of(*(result_of(day, findings=(shift(state),)) for day, state in enumerate(states)))

    assert told(result_of(10, findings=(shift(),)), past) == [shift()]
    assert mentions(shift().history, "5 July 2013", "4 to 6 July 2013", "window 6 in a row")
    (distribution,) = told(result_of(10, delay=5.0), past)
    assert (distribution.since[:10], distribution.in_a_row) == ("2013-07-09", 3)


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        ("2026-08-31", "2026-09-01", "31 August 2026"),
        ("2026-08-29", "2026-09-01", "29 to 31 August 2026"),
        ("2026-08-30", "2026-09-02", "30 August to 1 September 2026"),
        ("2026-12-30", "2027-01-02", "30 December 2026 to 1 January 2027"),
        ("2026-08-31T00:00", "2026-08-31T12:00", "31 August 2026, 00:00 to 12:00 UTC"),
        (
            "2026-08-31T18:00",
            "2026-09-01T00:00",
            "31 August 2026 18:00 to 1 September 2026 00:00 UTC",
        ),
        ("2026-08-31T02:00+02:00", "2026-09-01T02:00+02:00", "31 August 2026"),
    ],
)
def test_span_is_described_by_days_or_hours(start, end, text):
    first, last = (datetime.fromisoformat(time) for time in (start, end))

    assert (
        describe_span(
            *(time if time.tzinfo else time.replace(tzinfo=UTC) for time in (first, last))
        )
        == text
    )
