"""Windows of event time are parsed and written."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.errors import InvalidConfig
from mlflow_deploy_plugin.inference_log.windows import microseconds, parse_window, window_at

JULY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2013-07-01/2013-07-02", JULY, JULY + timedelta(days=1)),
        ("2013-07-01/1d", JULY, JULY + timedelta(days=1)),
        ("2013-07-01T12:30Z/90m", JULY + timedelta(hours=12.5), JULY + timedelta(hours=14)),
        ("2013-07-01T02:00+02:00/2013-07-01T01:00Z", JULY, JULY + timedelta(hours=1)),
    ],
)
def test_a_window_is_read_in_utc(text: str, start: datetime, end: datetime) -> None:
    window = parse_window(text)

    assert (window.start, window.end) == (start, end)
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2013-07-01", "START/END"),
        ("yesterday/1d", "'yesterday' is not a time"),
        ("2013-07-01/1 day", "'1 day' is not a time"),
        ("2013-07-02/2013-07-01", "ends before it begins"),
        ("2013-07-01/2013-07-01", "ends before it begins"),
        ("9999-12-31/90000d", "is not within the years 1 to 9999"),
        ("0001-01-01T00:00+10:00/1d", "is not within the years 1 to 9999"),
    ],
)
def test_what_is_no_window_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        parse_window(text)


def test_windows_are_counted_from_1970_so_that_days_begin_at_midnight() -> None:
    window = window_at(microseconds(JULY + timedelta(hours=23, minutes=59)), "1d")

    assert str(window) == "2013-07-01/2013-07-02"
    assert (window.end_us - window.start_us) == 86400 * 10**6
