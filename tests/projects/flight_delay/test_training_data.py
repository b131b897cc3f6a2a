"""Tests of the training data: the built-in months and the captured rows."""

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.data import (
    DAY,
    EVENT_TIME,
    FEATURES,
    LABEL,
    WEATHER,
    load_flights,
    months,
)
from projects.flight_delay.loop.injected_drift import parse_injection
from projects.flight_delay.training_data import load_training_data, parse_months, read_labelled
from tests.support.refusals import mentions


@pytest.fixture(scope="module")
def flights():
    return load_flights()


@pytest.fixture
def captured(flights, tmp_path):
    """Write flights of March and April in the format of the inference log, with 32-bit
    numbers.
    """
    some = months(flights, 3, 4).iloc[::50]
    rows = some[list(FEATURES)].astype(dict.fromkeys(WEATHER, "float32"))
    rows["_label"], rows["_label_number"] = (
        some[LABEL].map({True: "1", False: "0"}),
        some[LABEL].astype(float),
    )
    rows["_event_time"] = some[EVENT_TIME]
    path = tmp_path / "data.parquet"
    rows.to_parquet(path)
    return path


@pytest.mark.long
def test_captured_rows_come_back_as_the_flights_that_they_were(flights, captured):
    data = load_training_data(7, "1-3", str(captured))
    april = months(flights, 3, 4).iloc[::50]
    april = april[april[DAY].dt.month == 4].reset_index(drop=True)
    assert len(data.digest) == 64
    pd.testing.assert_frame_equal(data.new, april)
    assert len(data.all) == len(data.built_in) + len(april)
    assert data.all[EVENT_TIME].is_monotonic_increasing


@pytest.mark.long
def test_without_captured_rows_the_built_in_months_are_learned_alone(flights):
    data = load_training_data(7, "1-3", "")
    assert len(data.new) == 0
    assert data.digest == ""
    assert data.all is data.built_in
    assert len(data.built_in) + len(data.held_out) == len(months(flights, 1, 3))


def test_file_without_labelled_flights_is_refused(flights, tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_labelled(path, flights)
    pd.DataFrame({"carrier": ["AA"]}).to_parquet(path)
    with pytest.raises(InvalidConfig, match="columns origin, dest"):
        read_labelled(path, flights)


@pytest.mark.parametrize(
    ("column", "value"), [("_event_time", "someday"), ("_label_number", "yes"), ("temp", "warm")]
)
def test_labelled_column_of_another_type_is_refused(flights, captured, column, value):
    pd.read_parquet(captured).assign(**{column: value}).to_parquet(captured)
    with pytest.raises(InvalidConfig, match=f"other types .*{value}"):
        read_labelled(captured, flights)


@pytest.mark.parametrize(("text", "months_"), [("1-3", (1, 3)), ("4", (4, 4)), ("4.0", (4, 4))])
def test_months_are_read_as_people_and_mlflow_write_them(text, months_):
    assert parse_months(text) == months_


@pytest.mark.parametrize("text", ["", "0-3", "3-1", "1-13", "spring"])
def test_invalid_range_of_months_is_refused(text):
    with pytest.raises(InvalidConfig, match="month of 2013"):
        parse_months(text)


def test_an_injected_change_begins_with_its_month_and_says_that_it_is_injected(flights):
    some = months(flights, 6, 7)
    injection = parse_injection("celsius:7")
    assert injection is not None
    assert mentions(str(injection), "month 7", "temp", "dewp", "°C", "°F")
    changed = injection.apply(some)
    july = some[DAY].dt.month == 7
    pd.testing.assert_frame_equal(changed[~july], some[~july])
    np.testing.assert_allclose(changed.loc[july, "temp"] * 1.8 + 32, some.loc[july, "temp"])
    assert parse_injection("") is None
    with pytest.raises(InvalidConfig, match="KIND:MONTH is expected"):
        parse_injection("snow:7")
