"""What a finding says of the windows before."""

from datetime import timedelta

import pytest

from mlflow_deploy_plugin.monitoring.judgement import Finding, Judgement
from mlflow_deploy_plugin.monitoring.reports.change import with_change
from mlflow_deploy_plugin.monitoring.reports.trend import PastWindow
from support.judgements import FIRST, judgement_of

DAY = timedelta(days=1)


def past(*windows: tuple[str, float | None]) -> list[PastWindow]:
    """A day each, up to the one before the tenth: state and accuracy, which is to be 0.8."""
    first = FIRST + (10 - len(windows)) * DAY
    return [
        PastWindow(first + day * DAY, state, {} if value is None else _metrics(value))
        for day, (state, value) in enumerate(windows)
    ]


def _metrics(value: float) -> dict[str, float]:
    return {"criterion/accuracy": value, "criterion_threshold/accuracy": 0.8, "criterion/accuracy/carrier_AA": 0.6}


def judged(state: str = "violated", value: float | None = 0.7, segment: str = "") -> Judgement:
    found = Finding("accuracy", "criterion", state, "0.7 on 500 rows", value, 0.8, segment)
    where = f" of {segment}" if segment else ""
    reason = f"accuracy{where}: 0.7 on 500 rows, and 1 more"
    return judgement_of(10, kind="performance", state=state, findings=(found,), reason=reason)


@pytest.mark.parametrize(
    ("windows", "said"),
    [
        ([], ""),
        ([("kept", 0.9)], "fell from 0.9 in the window before; violated since 2013-07-11, window 1 in a row"),
        (
            [("kept", 0.9), ("kept", 0.84), ("cannot tell", 0.82), ("violated", 0.75), ("violated", 0.72)],
            "fell from 0.84, the median of the 3 windows before; violated since 2013-07-09, window 3 in a row",
        ),
        (
            [("kept", 0.9), ("violated", 0.7), ("not judged", None), ("cannot tell", 0.78)],
            "fell from 0.9 in the window before; violated since 2013-07-08, window 2 in a row",
        ),
        (
            [("violated", 0.6), ("kept", 0.7), ("violated", 0.9)],
            "unchanged from 0.7, the median of the 3 windows before; violated since 2013-07-11, window 1 in a row",
        ),
        ([("violated", 0.6), ("violated", 0.6)], "violated since 2013-07-09, window 3 in a row"),
    ],
    ids=["first", "one", "in a row", "undecided", "of another figure", "ever since"],
)
def test_a_violated_figure_says_which_way_it_went_from_what_and_since_when(windows, said) -> None:
    judgement = with_change(judged(), past(*windows))

    (found,) = judgement.findings
    assert found.reason == "; ".join(filter(None, ["0.7 on 500 rows", said]))
    assert judgement.reason == f"accuracy: {found.reason}, and 1 more"


def test_a_figure_that_is_not_violated_says_which_way_it_went() -> None:
    (found,) = with_change(judged("kept", 0.95), past(("kept", 0.9), ("violated", 0.7), ("kept", 0.9))).findings

    assert found.reason == "0.7 on 500 rows; rose from 0.9, the median of the 3 windows before"


def test_each_segment_stands_beside_its_own_windows_and_what_has_no_value_beside_none() -> None:
    (of_segment,) = with_change(judged(segment="carrier=AA"), past(("kept", 0.9))).findings
    (unknown,) = with_change(judged("not judged", None), past(("kept", 0.9))).findings

    assert "rose from 0.6 in the window before" in of_segment.reason
    assert unknown.reason == "0.7 on 500 rows"
