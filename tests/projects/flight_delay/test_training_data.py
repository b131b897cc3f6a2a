"""Tests of the training data: the built-in months and the captured rows."""

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
from projects.flight_delay.training_data import load_training_data, parse_months, read_labelled


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
def test_captured_rows_round_trip(flights, captured):
    data = load_training_data(7, "1-3", str(captured))
    april = months(flights, 3, 4).iloc[::50]
    april = april[april[DAY].dt.month == 4].reset_index(drop=True)
    assert len(data.digest) == 64
    pd.testing.assert_frame_equal(data.new, april)
    assert len(data.all) == len(data.built_in) + len(april)
    assert data.all[EVENT_TIME].is_monotonic_increasing


@pytest.mark.long
def test_file_without_labelled_flights_is_refused(flights, tmp_path):
    path = tmp_path / "rows.parquet"
    with pytest.raises(InvalidConfig, match="cannot be read"):
        read_labelled(path, flights)
    pd.DataFrame({"carrier": ["AA"]}).to_parquet(path)
    with pytest.raises(InvalidConfig, match="columns origin, dest"):
        read_labelled(path, flights)


@pytest.mark.long
@pytest.mark.parametrize(
    ("column", "value"), [("_event_time", "someday"), ("_label_number", "yes"), ("temp", "warm")]
)
def test_column_of_wrong_type_is_refused(flights, captured, column, value):
    pd.read_parquet(captured).assign(**{column: value}).to_parquet(captured)
    with pytest.raises(InvalidConfig, match=f"other types .*{value}"):
        read_labelled(captured, flights)


@pytest.mark.parametrize(("text", "months_"), [("1-3", (1, 3)), ("4", (4, 4)), ("4.0", (4, 4))])
def test_months_are_parsed(text, months_):
    assert parse_months(text) == months_


@pytest.mark.parametrize("text", ["", "0-3", "3-1", "1-13", "spring"])
def test_invalid_months_are_refused(text):
    with pytest.raises(InvalidConfig, match="month of 2013"):
        parse_months(text)
