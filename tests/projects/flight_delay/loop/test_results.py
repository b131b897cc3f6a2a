"""Tests of the results of a replay with a few flights."""

import numpy as np
import pandas as pd
import pytest

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.data import DAY, EVENT_TIME, LABEL
from projects.flight_delay.loop.injected_drift import parse_injection
from projects.flight_delay.loop.results import (
    JudgedWindow,
    ServedVersionChange,
    accuracy_by_month,
    draw_plot,
    served_version_changes,
    verdicts,
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


def window(monitor, start, end, verdict):
    return JudgedWindow(
        monitor, pd.Timestamp(start, tz="UTC"), pd.Timestamp(end, tz="UTC"), verdict, "why"
    )


def test_accuracy_by_month_is_given_with_and_without_the_loop(played):
    table = accuracy_by_month(played).set_index("month")
    assert table["accuracy_with_loop"].tolist() == [0.8, 0.8, 1.0]
    assert table["accuracy_without"].tolist() == [0.8, 0.8, 0.8]
    assert table["versions"].tolist() == ["1", "1", "2"]
    assert served_version_changes(played) == [
        ServedVersionChange(pd.Timestamp("2013-07-01 09:00", tz="UTC"), "2")
    ]
    assert "injected" not in table


def test_injected_drift_is_labelled_in_both_tables_and_in_the_plot(played, tmp_path, monkeypatch):
    injection = parse_injection("concept:7")
    assert injection is not None
    assert accuracy_by_month(played, injection)["injected"].tolist() == ["", "", "concept"]
    weeks = [
        window("accuracy", "2013-06-03", "2013-07-01", "kept"),
        window("drift", "2013-06-26", "2013-07-03", "drift"),
    ]
    assert verdicts(weeks, injection)["injected"].tolist() == ["", "concept"]
    assert "injected" not in verdicts(weeks)
    texts = []
    monkeypatch.setattr(
        "matplotlib.figure.Figure.suptitle", lambda figure, text: texts.append(text)
    )
    draw_plot(
        accuracy_by_month(played, injection),
        weeks,
        served_version_changes(played),
        tmp_path / "plot.png",
        injection,
    )
    draw_plot(
        accuracy_by_month(played), weeks, served_version_changes(played), tmp_path / "plot.png"
    )
    assert texts == [
        "Flights of 2013, accuracy by month, with INJECTED drift",
        "Flights of 2013, accuracy by month",
    ]
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_a_concept_is_turned_from_its_month_on_alone(played):
    injection = parse_injection("concept:7")
    assert injection is not None
    is_july = played[DAY].dt.month == 7
    assert (injection.apply(played)[LABEL] != played[LABEL]).equals(is_july)


@pytest.mark.parametrize("text", ["concept", "concept:13", "fog:3", "celsius:x", ":7"])
def test_invalid_injection_error_lists_the_kinds(text):
    with pytest.raises(InvalidConfig, match=r"KIND:MONTH .*celsius, concept"):
        parse_injection(text)
    assert parse_injection("") is None
