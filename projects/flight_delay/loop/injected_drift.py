"""Drift that is injected into real flights on request. All results of a replay with
such drift are labelled.
"""

from dataclasses import dataclass

import pandas as pd

from mlflow_deploy_plugin.core.errors import InvalidConfig
from projects.flight_delay.data import DAY, LABEL, YEAR

KINDS = {
    "celsius": "temp and dewp are in °C instead of °F",
    "concept": "the labels of flights that leave before noon are inverted",
}
_NOON = 12 * 60


@dataclass(frozen=True)
class Injection:
    """A change of all flights from the start of a month of 2013."""

    kind: str
    month: int

    def __str__(self) -> str:
        return f"injected from month {self.month} on: {KINDS[self.kind]}"

    @property
    def begins(self) -> pd.Timestamp:
        return pd.Timestamp(YEAR, self.month, 1, tz="UTC")

    def apply(self, flights: pd.DataFrame) -> pd.DataFrame:
        """Return the flights with the change."""
        late = flights[DAY] >= self.begins
        changed = flights.copy()
        if self.kind == "celsius":
            for name in ("temp", "dewp"):
                changed.loc[late, name] = (changed.loc[late, name] - 32) / 1.8
        else:
            turned = late & (changed["departure_minute"] < _NOON)
            changed.loc[turned, LABEL] = ~changed.loc[turned, LABEL]
        return changed


def parse_injection(text: str) -> Injection | None:
    """Parse `celsius:7` or `concept:9`; an empty text is None. Raises InvalidConfig."""
    if not text:
        return None
    kind, _, month = text.partition(":")
    if kind not in KINDS or not month.isdigit() or not 1 <= int(month) <= 12:
        raise InvalidConfig(
            f"inject {text!r}: KIND:MONTH is expected, e.g. celsius:7; the kinds are "
            f"{', '.join(KINDS)}",
        )
    return Injection(kind, int(month))
