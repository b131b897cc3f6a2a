"""Times and columns of sources in the form of the log."""

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.serve.spool.captured_model import ColumnMask
from mlflow_deploy_plugin.watch.observed.exchange import Exchange
from mlflow_deploy_plugin.watch.observed.source_rows import (
    RowContext,
    exchange_rows,
    log_rows,
    parse_times,
)

NOW = datetime(2026, 11, 30, tzinfo=UTC)
TIMES = st.datetimes(datetime(1980, 1, 1), datetime(2200, 1, 1)).map(
    lambda time: time.replace(tzinfo=UTC)
)
EAST = timezone(timedelta(hours=5, minutes=30))
FORMS = {
    "timestamp": lambda time: pa.array([time], pa.timestamp("ns", "UTC")),
    "without a zone": lambda time: pa.array([time.replace(tzinfo=None)], pa.timestamp("us")),
    "text": lambda time: pa.array([time.isoformat()]),
    "text with Z": lambda time: pa.array([time.isoformat().replace("+00:00", "Z")]),
    "text in the east": lambda time: pa.array([time.astimezone(EAST).isoformat()]),
    "microseconds": lambda time: pa.array([round(time.timestamp() * 1e6)]),
}


def times_of(array):
    return parse_times(pa.chunked_array([array])).to_pylist()


@pytest.mark.parametrize("form", FORMS)
@given(time=TIMES)
def test_observed_time_is_read_in_each_form(form, time):
    (read,) = times_of(FORMS[form](time))

    assert abs(read - time) < timedelta(microseconds=2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([1_762_000_000]), datetime(2025, 11, 1, 12, 26, 40, tzinfo=UTC)),
        (pa.array([1_762_000_000.5]), datetime(2025, 11, 1, 12, 26, 40, 500_000, UTC)),
        (pa.array([1_762_000_000_123]), datetime(2025, 11, 1, 12, 26, 40, 123_000, UTC)),
        (pa.array([date(2025, 11, 1)]), datetime(2025, 11, 1, tzinfo=UTC)),
        (pa.array([-1]), None),
        (pa.array([2**62]), None),
        (pa.array([float("nan")]), None),
        (pa.array(["noon"]), None),
        (pa.array(["9999-99-99"]), None),
        (pa.array([None], pa.null()), None),
        (pa.array([True]), None),
        (pa.array([[1]]), None),
    ],
)
def test_observed_value_is_a_time_or_none(array, expected):
    assert times_of(array) == [expected]


def logged(exchanges, tmp_path, **capture):
    mask = ColumnMask(tmp_path / "mask.key")
    context = RowContext("churn", "churn", "3", CaptureSpec(**capture), mask, NOW)
    return log_rows(exchange_rows(exchanges), context, "the inbox")


def test_rows_of_exchanges_have_their_positions(tmp_path):
    first = Exchange("a", NOW, {"age": [1, 2], "city": ["x", None]}, {"prediction": [0.5, 0.25]})
    second = Exchange("b", NOW, {"age": [2.5]}, {"prediction": [1.0]}, version="7")

    table, faults = logged([first, second], tmp_path)

    assert faults == []
    rows = table.select(["_prediction_id", "_row", "_version", "age", "city", "prediction"])
    assert [tuple(row.values()) for row in rows.to_pylist()] == [
        ("a", 0, "3", 1.0, "x", 0.5),
        ("a", 1, "3", 2.0, None, 0.25),
        ("b", 0, "7", 2.5, None, 1.0),
    ]


def test_callers_cannot_name_columns_of_the_log(tmp_path):
    reserved = {"_version": [1], "_shadow": [1], "_tried": [1], "prediction": [1]}
    exchange = Exchange("a", NOW, {**reserved, "age": [1.0]}, {"prediction": [0.5]})

    table, _ = logged([exchange], tmp_path)

    (row,) = table.to_pylist()
    assert (row["_version"], row["_shadow"], row["prediction"]) == ("3", False, 0.5)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([Decimal("1.5")], 1.5),
        (pa.array(["x"]).dictionary_encode(), "x"),
        ([date(2025, 11, 1)], "2025-11-01"),
        (pa.array(["x"], pa.large_string()), "x"),
        ([[1.0, 2.0]], [1.0, 2.0]),
        (np.array([1], np.float16), 1.0),
        ([b"bytes"], None),
        ([{"a": 1}], None),
    ],
)
def test_observed_column_has_a_type_of_the_log(values, expected, tmp_path):
    exchange = Exchange("a", NOW, {"x": values}, {"prediction": [0.5]})

    table, _ = logged([exchange], tmp_path)

    assert table.to_pylist()[0].get("x") == expected


def test_names_of_few_requests_are_left_out(tmp_path):
    exchanges = [
        Exchange(f"r{number}", NOW, {"age": [1.0], f"x{number}": [1.0]}, {"prediction": [0.5]})
        for number in range(3000)
    ]

    table, _ = logged(exchanges, tmp_path)

    assert table.column("age").null_count == 0
    assert 2000 < table.num_columns < 2050
