"""Tests of the flights: types, days and held-out days."""

import pandas as pd
import pytest

from projects.flight_delay import data


@pytest.fixture(scope="module")
def flights():
    return data.load_flights()


@pytest.mark.long
def test_every_flight_that_arrived_is_there_once_in_the_order_of_event_time(flights):
    assert len(flights) == 327_346
    assert flights[data.EVENT_TIME].is_monotonic_increasing


def test_the_columns_are_typed_and_only_the_weather_has_gaps(flights):
    features = flights[list(data.FEATURES)]
    assert all(pd.api.types.is_string_dtype(features[name]) for name in data.CATEGORIES)
    assert {str(features[name].dtype) for name in data.INTEGERS} == {"int64"}
    assert {str(features[name].dtype) for name in (*data.BOOLEANS,)} == {"bool"}
    assert {str(features[name].dtype) for name in data.WEATHER} == {"float64"}
    with_gaps = {name for name in features if features[name].isna().any()}
    assert with_gaps == set(data.WEATHER)
    assert features["departure_minute"].between(0, 24 * 60).all()


def test_ten_whole_days_are_held_out_of_the_first_three_months(flights):
    parts = data.split(flights, seed=7)
    held_out = set(parts.calm[data.DAY])
    trained = set(parts.train[data.DAY])
    assert len(held_out) == 10
    assert len(trained) == 80
    assert not held_out & trained
    whole = flights[flights[data.DAY].isin(held_out)]
    assert len(parts.calm) == len(whole)
    assert set(parts.train[data.DAY].dt.month) == {1, 2, 3}


def test_the_seed_alone_chooses_the_days(flights):
    early = data.months(flights, 1, 3)
    assert data.choose_days(early, 10, seed=7) == data.choose_days(early, 10, seed=7)
    assert data.choose_days(early, 10, seed=7) != data.choose_days(early, 10, seed=8)
