"""Windows of event time are parsed and written."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.serve.inference_log.windows import (
    microseconds,
    parse_time_range,
    parse_window,
    window_at,
)

JULY = datetime(2013, 7, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2013-07-01/2013-07-02", JULY, JULY + timedelta(days=1)),
        ("2013-07-01/1d", JULY, JULY + timedelta(days=1)),
        ("2013-07-01T12:30Z/90m", JULY + timedelta(hours=12.5), JULY + timedelta(hours=14)),
        ("0476-09-04/1d", datetime(476, 9, 4, tzinfo=UTC), datetime(476, 9, 5, tzinfo=UTC)),
        ("2013-07-01T02:00+02:00/2013-07-01T01:00Z", JULY, JULY + timedelta(hours=1)),
    ],
)
def test_a_window_is_read_in_utc(text, start, end):
    window = parse_window(text)

    assert window.start == start
    assert window.end == end
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2013-07-01", "START/END"),
        ("yesterday/1d", "'yesterday' is not a time"),
        ("2013-07-01/1 day", "'1 day' is not a time"),
        ("2013-07-02/2013-07-01", "its end is not after its start"),
        ("2013-07-01/2013-07-01", "its end is not after its start"),
        ("9999-12-31/90000d", "is not within the years 1 to 9999"),
        ("0001-01-01T00:00+10:00/1d", "is not within the years 1 to 9999"),
    ],
)
def test_invalid_window_is_refused(text, message):
    with pytest.raises(InvalidConfig, match=message):
        parse_window(text)


def test_days_begin_at_midnight():
    window = window_at(microseconds(JULY + timedelta(hours=23, minutes=59)), "1d")

    assert str(window) == "2013-07-01/2013-07-02"
    assert (window.end_us - window.start_us) == 86400 * 10**6


NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def test_durations_are_received_and_times_are_events():
    span = parse_time_range("2h", "30m", NOW)
    assert span.received_from == NOW - timedelta(hours=2)
    assert span.received_until == NOW - timedelta(minutes=30)
    assert span.window is None

    span = parse_time_range("2013-07-01", "2013-07-02T02:00+02:00", NOW)
    assert span.start == JULY
    assert span.end == JULY + timedelta(days=1)
    assert parse_time_range("2013-07-01/1d", None, NOW) == span
    assert parse_time_range("2013-07-01", "1h", NOW).received_until == NOW - timedelta(hours=1)


def test_unbounded_time_range_is_unlimited():
    assert parse_time_range(None, None, NOW).window is None
    assert parse_time_range(None, None, NOW).received_us is None


def test_files_older_than_the_range_are_skipped():
    span = parse_time_range("1h", None, NOW)
    assert span.may_have_rows(NOW - timedelta(minutes=30))
    assert not span.may_have_rows(NOW - timedelta(days=1))
    assert parse_time_range("2013-07-01", None, NOW).may_have_rows(JULY - timedelta(days=999))


@pytest.mark.parametrize(
    ("since", "until", "message"),
    [
        ("yesterday", None, "--since 'yesterday' cannot be read; it is a duration before now"),
        (None, "1 h", "--until '1 h' cannot be read"),
        ("999999d", None, "--since 999999d is before the year 1"),
        ("0001-01-01T00:00+14:00", None, "not within the years 1 to 9999"),
        ("1h", "2h", "the range from --since 1h to --until 2h is empty"),
        ("2013-07-02", "2013-07-01", "the range from"),
        ("2013-07-01/1d", "2013-07-03", "is already a window: remove --until 2013-07-03"),
        ("2013-07-01/1d", "1h", "is already a window: remove --until 1h"),
        ("2013-07-01/never", None, "'never' is not a time"),
    ],
)
def test_impossible_time_range_is_refused(since, until, message):
    with pytest.raises(InvalidConfig, match=message):
        parse_time_range(since, until, NOW)
