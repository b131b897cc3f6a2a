"""Tests of names, times, references and schedules in a spec."""

from datetime import UTC, datetime, timedelta

import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from mlflow_deploy_plugin.core.spec.types import (
    bin_period,
    duration_seconds,
    duration_text,
    load_time_zone,
    parse_duration,
    parse_latency,
    reachable_url,
    rolling_span,
    validate_crontab,
    validate_lag,
    validate_reference,
)
from tests.support.refusals import refused


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h", 3600), ("2d", 172800), ("1w", 604800)]
)
def test_durations_are_seconds(text, seconds):
    assert duration_seconds(text) == seconds


def test_duration_option_is_parsed_or_refused():
    assert parse_duration("90d", "--keep") == timedelta(days=90)
    assert parse_duration("1w", "--every") == timedelta(days=7)
    for text in ("0d", "05m", " 5m", "5m\n", "1000000s", "5", "m", "", "1.5h", "٣d"):
        with pytest.raises(InvalidConfig, match="--keep"):
            parse_duration(text, "--keep")


def test_latency_option_is_parsed_or_refused():
    assert [parse_latency(text, "--p99") for text in ("20ms", "0.5ms", "1.5s", "30s")] == [
        0.02,
        0.0005,
        1.5,
        30,
    ]
    for text in (
        "0",
        "0ms",
        "0.0s",
        "20",
        "20 ms",
        "1m",
        "-5ms",
        ".5s",
        "1e3ms",
        "nans",
        "5ms\n",
        "1000000000ms",
        "",
    ):
        with pytest.raises(InvalidConfig, match="--p99"):
            parse_latency(text, "--p99")


DAY = timedelta(days=1)
FIRST = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "training",
        "rolling:7d",
        "window:2013-01-01/2013-04-01",
        "window:2013-01-01T12:00+02:00/90d",
        "dataset:s3://a/b",
    ],
)
def test_valid_reference_is_unchanged(text):
    assert validate_reference(text) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rolling:4000d", "at most 3660d"),
        ("window:2013-04-01/2013-01-01", "its end is not after its start"),
        ("window:yesterday/1d", "a window is START/END or START/DURATION in UTC"),
        ("window:0001-01-01T00:00+14:00/1d", "a window is START/END or START/DURATION in UTC"),
    ],
)
def test_invalid_reference_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        validate_reference(text)


@pytest.mark.parametrize(
    ("lag", "said"), [("1h", "is shorter than the window"), ("36h", "is not a multiple")]
)
def test_lag_is_a_multiple_of_the_window(lag, said):
    validate_lag("7d", "1d")
    with pytest.raises(ValueError, match=said):
        validate_lag(lag, "1d")


def test_rolling_span_covers_rate_and_lag():
    assert rolling_span(DAY, DAY, 0.05) == DAY + 40 * DAY
    assert rolling_span(90 * DAY, DAY, 0.5) == 180 * DAY


def test_bin_period_precedes_the_last_change():
    span = 10 * DAY
    start, end = bin_period(FIRST, FIRST + 500 * DAY, span)
    assert end - start == span
    assert bin_period(FIRST, FIRST + 501 * DAY, span) in [
        (start, end),
        (start + 4 * span, end + 4 * span),
    ]
    assert bin_period(FIRST, FIRST + 5 * DAY, span) == (FIRST, FIRST + 5 * DAY)


@pytest.mark.parametrize(
    "line",
    [
        "15 6 * * *",
        "*/15 0-6,22 1 jan-mar,12 mon-fri/2",
        "0 6 30 2 mon",  # Either field may match, and Mondays exist.
        "0 6 29 feb *",
        "0 0 * * sat-sun",
    ],
)
def test_valid_crontab_line_is_unchanged(line):
    assert validate_crontab(line) == line


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "15 6 * *",
            "five fields are expected; minute, hour, day, month and weekday are expected, e.g.",
        ),
        ("60 6 * * *", "Bad minute; minute, hour, day, month and weekday are expected"),
        ("0 6 * * mo", "Bad day-of-week; "),
        ("0 6 * foo *", "Bad month; "),
        ("0 6-3 * * *", "Bad hour; "),
        ("*/0 * * * *", "Bad minute; "),
        ("1,, 6 * * *", "Bad minute; "),
        ("0 6 * * 5-3", "Bad day-of-week; "),
        ("0 6 * * 8", "Bad day-of-week; "),
        ("0 6 31 2,4 *", "Bad day-of-month; "),
    ],
)
def test_invalid_crontab_error_names_field(line, said):
    with pytest.raises(ValueError, match=said):
        validate_crontab(line)


@pytest.mark.parametrize("name", ["Europe/Nowhere", "../etc/passwd", "Europe", ""])
def test_unknown_time_zone_is_refused(name):
    assert load_time_zone("Europe/Berlin").key == "Europe/Berlin"
    with refused(InvalidConfig, "time_zone", repr(name), "Europe/Berlin"):
        load_time_zone(name)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("example.org", "http://example.org:80"),
    ],
)
def test_url_is_reachable_from_this_machine(host, url):
    assert reachable_url(host, 80) == url


@pytest.mark.parametrize(
    ("seconds", "text"), [(604_800, "7d"), (30_931_200, "358d"), (129_600, "36h"), (90, "90s")]
)
def test_duration_text_uses_largest_unit(seconds, text):
    assert duration_text(seconds) == text
    assert duration_seconds(text) == seconds
