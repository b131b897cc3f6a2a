"""The training data: the built-in months, and labelled rows that were captured later.

A file of labelled rows contains the model's columns as in the inference log, the label
in `_label_number` (0 or 1) or in `delayed`, and the time in `_event_time` or
`event_time`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.data import (
    DAY,
    EVENT_TIME,
    FEATURES,
    LABEL,
    WEATHER,
    YEAR,
    load_flights,
    split,
)

_LOG_TIME = "_event_time"
_LOG_LABEL = "_label_number"


@dataclass(frozen=True)
class TrainingData:
    """The rows for training and validation, in the order of event time.

    Attributes:
        built_in: the rows of the built-in months, without ten whole days.
        new: the captured, labelled rows, or an empty table.
        held_out: the rows of the ten days.
        months: the requested built-in months.
        digest: the SHA-256 of the file of labelled rows, or empty without a file.
    """

    built_in: pd.DataFrame
    new: pd.DataFrame
    held_out: pd.DataFrame
    months: str
    digest: str

    @property
    def all(self) -> pd.DataFrame:
        if self.new.empty:
            return self.built_in
        return pd.concat([self.built_in, self.new]).sort_values(
            EVENT_TIME,
            kind="stable",
            ignore_index=True,
        )


def load_training_data(seed: int, months: str, data: str) -> TrainingData:
    """Load the rows of a training.

    Args:
        seed: the seed for the choice of the ten held-out days.
        months: the built-in months of 2013, e.g. `1-3` or `2`.
        data: a Parquet file of labelled rows, or empty. Rows of the built-in months are
            ignored as duplicates.

    Raises:
        InvalidConfig: the months or the file are not valid.
    """
    first, last = parse_months(months)
    flights = load_flights()
    parts = split(flights, seed, first, last)
    new = parts.train.iloc[:0]
    digest = ""
    if data:
        path = Path(data)
        new = read_labelled(path, flights)
        known = (new[DAY].dt.year == YEAR) & new[DAY].dt.month.between(first, last)
        new = new[~known].reset_index(drop=True)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        new = as_measured(new, flights)
    return TrainingData(parts.train, new, parts.calm, months, digest)


def as_measured(captured: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Restore the measured numbers of rows that were stored in 32 bits.

    Trees could set a threshold between 39.02 and the stored 39.0200005, which the graph
    cannot distinguish in 32 bits. In a measurement, 575 of 4,712 rows were on the wrong
    side of a threshold, and the parity check failed.

    Args:
        known: rows with the measured values. Other values become the shortest decimal
            with the same 32-bit value.
    """
    measured = captured.copy()
    for name in WEATHER:
        singles = captured[name].to_numpy(dtype="float32", na_value=np.nan)
        distinct, places = np.unique(singles, return_inverse=True)
        first = {np.float32(value): value for value in known[name].dropna().unique()}
        measured[name] = np.array([first.get(value, float(str(value))) for value in distinct])[
            places
        ]
    return measured


def read_labelled(path: Path, like: pd.DataFrame) -> pd.DataFrame:
    """Read the labelled rows of a file with the types of the flights `like`. Raises
    InvalidConfig.
    """
    try:
        rows = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors.
        raise InvalidConfig(
            f"the labelled rows {path} cannot be read: {' '.join(str(error).split())}",
        ) from None
    rows = rows.rename(
        columns={_LOG_TIME: EVENT_TIME} | ({} if LABEL in rows else {_LOG_LABEL: LABEL}),
    )
    if missing := [name for name in (*FEATURES, LABEL, EVENT_TIME) if name not in rows]:
        raise InvalidConfig(f"the labelled rows {path} lack the columns {', '.join(missing)}")
    rows = rows.dropna(subset=[LABEL, EVENT_TIME])
    try:
        rows[LABEL] = rows[LABEL].astype(float) > 0
        rows[EVENT_TIME] = pd.to_datetime(rows[EVENT_TIME], utc=True)
        rows[DAY] = rows[EVENT_TIME].dt.floor("D")
        rows = rows[list(like.columns)].astype({name: like[name].dtype for name in FEATURES})
    except (TypeError, ValueError) as error:
        raise InvalidConfig(
            f"the labelled rows {path} have other types than the flights: {error}",
        ) from None
    return rows.sort_values(EVENT_TIME, kind="stable", ignore_index=True)


def parse_months(months: str) -> tuple[int, int]:
    """Parse `1-12` as (1, 12) and `4` as (4, 4). Raises InvalidConfig."""
    first, _, last = months.partition("-")
    try:
        parsed = int(float(first)), int(float(last or first))  # MLflow passes 4 as 4.0.
    except ValueError:
        parsed = (0, 0)
    if not 1 <= parsed[0] <= parsed[1] <= 12:
        raise InvalidConfig(
            f"months {months!r}: a month of 2013 or a range is expected, e.g. 4 or 1-3",
        )
    return parsed
