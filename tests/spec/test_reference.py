"""References are validated with the spec, and a rolling one knows how much of the log it reads."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.spec import bin_period, rolling_span
from mlflow_deploy_plugin.spec.reference import validate_lag, validate_reference

DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["training", "rolling:7d", "window:2013-01-01/2013-04-01", "window:2013-01-01T12:00+02:00/90d", "dataset:s3://a/b"],
)
def test_a_reference_is_taken_as_it_is(text: str) -> None:
    assert validate_reference(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rolling:4000d", "at most 3660d"),
        ("window:2013-04-01/2013-01-01", "ends before it begins"),
        ("window:yesterday/1d", "a window is START/END or START/DURATION in UTC"),
        ("window:0001-01-01T00:00+14:00/1d", "a window is START/END or START/DURATION in UTC"),
    ],
)
def test_a_reference_that_cannot_be_says_why(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        validate_reference(text)


@pytest.mark.parametrize(("lag", "said"), [("1h", "lies in the window itself"), ("36h", "take a multiple")])
def test_a_lag_leads_from_one_window_to_another(lag: str, said: str) -> None:
    assert validate_lag("7d", "1d") == "7d"
    with pytest.raises(ValueError, match=said):
        validate_lag(lag, "1d")


def test_pairs_are_read_for_the_rate_and_at_least_a_lag_of_them() -> None:
    assert rolling_span(DAY, DAY, 0.05) == DAY + 40 * DAY
    assert rolling_span(90 * DAY, DAY, 0.5) == 180 * DAY


def test_bins_are_of_the_span_before_the_last_change_or_of_the_first_in_a_young_log() -> None:
    span = 10 * DAY
    start, end = bin_period(FIRST, FIRST + 500 * DAY, span)
    assert end - start == span
    assert bin_period(FIRST, FIRST + 501 * DAY, span) in [(start, end), (start + 4 * span, end + 4 * span)]
    assert bin_period(FIRST, FIRST + 5 * DAY, span) == (FIRST, FIRST + 5 * DAY)
