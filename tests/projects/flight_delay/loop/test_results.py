"""Tests of the results of a replay with a few flights."""

import numpy as np
import pandas as pd
import pytest

from projects.flight_delay.data import DAY, EVENT_TIME, LABEL
from projects.flight_delay.loop.injected_drift import parse_injection
from projects.flight_delay.loop.results import (
    ServedVersionChange,
    accuracy_by_month,
    served_version_changes,
)


@pytest.fixture
def played():
    """Return five flights per day from May to July. Version 1 predicts `on time`;
    version 2, from July, is correct.
    """
    days = pd.date_range("2013-05-01", "2013-07-31", tz="UTC").repeat(5)
    delayed = np.arange(len(days)) % 5 == 0
    is_july = np.asarray(days.month == 7)
    return pd.DataFrame(
        {
            DAY: days,
            EVENT_TIME: days + pd.Timedelta(hours=9),
            LABEL: delayed,
            "departure_minute": 9 * 60,
            "prediction": delayed & is_july,
            "still": False,
            "version": np.where(is_july, "2", "1"),
        }
    )


def test_accuracy_is_given_with_and_without_loop(played):
    table = accuracy_by_month(played).set_index("month")
    assert table["accuracy_with_loop"].tolist() == [0.8, 0.8, 1.0]
    assert table["accuracy_without"].tolist() == [0.8, 0.8, 0.8]
    assert table["versions"].tolist() == ["1", "1", "2"]
    assert served_version_changes(played) == [
        ServedVersionChange(pd.Timestamp("2013-07-01 09:00", tz="UTC"), "2")
    ]
    assert "injected" not in table


def test_concept_changes_from_its_month(played):
    injection = parse_injection("concept:7")
    is_july = played[DAY].dt.month == 7
    assert injection is not None
    assert (injection.apply(played)[LABEL] != played[LABEL]).equals(is_july)
