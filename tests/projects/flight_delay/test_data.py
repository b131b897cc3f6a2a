"""Tests of the flights: types, days and held-out days."""

import pytest

from projects.flight_delay import data


@pytest.fixture(scope="module")
def flights():
    return data.load_flights()


@pytest.mark.long
def test_flights_are_complete_and_sorted(flights):
    assert len(flights) == 327_346
    assert flights[data.EVENT_TIME].is_monotonic_increasing


@pytest.mark.long
def test_ten_whole_days_are_held_out(flights):
    parts = data.split(flights, seed=7)
    held_out = set(parts.calm[data.DAY])
    trained = set(parts.train[data.DAY])
    assert len(held_out) == 10
    assert len(trained) == 80
    assert not held_out & trained
    whole = flights[flights[data.DAY].isin(held_out)]
    assert len(parts.calm) == len(whole)
    assert set(parts.train[data.DAY].dt.month) == {1, 2, 3}
