"""The words for figures: their names, their values and their changes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, CategoryBins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS
from mlflow_deploy_plugin.watch.result import Check, format_number
from mlflow_deploy_plugin.watch.sequential.levels import (
    DISTANCE,
    MEAN,
    MISSING,
    MODE,
    NEW,
    OUTSIDE,
    ROWS_FIGURE,
    SPREAD,
    FigureSeries,
)

VAGUE = (DISTANCE, MEAN, MODE, OUTSIDE, "second")
"""The figures that are shown only if no other figure of the column is unusual."""
LOGARITHMIC = (ROWS_FIGURE, SPREAD, MODE)
"""The figures that are logarithms."""
_IN_UNIT = ("level", MEAN, DISTANCE)
_NAMES: Mapping[str, str] = {
    ROWS_FIGURE: "rows",
    "level": "mean",
    MEAN: "mean of all values",
    SPREAD: "deviation",
    MODE: "frequency of the most frequent values (1 in the reference)",
    MISSING: "share of missing values",
    NEW: "share of new values",
    OUTSIDE: "share out of range",
}
_DIRECTIONS: Mapping[str, tuple[str, str]] = {
    ROWS_FIGURE: ("more", "fewer"),
    "level": ("higher", "lower"),
    MEAN: ("higher", "lower"),
    SPREAD: ("wider", "narrower"),
    DISTANCE: ("farther", "closer"),
    MISSING: ("more", "fewer"),
}
_CHECKS: Mapping[str, Check] = {
    MISSING: "missing",
    NEW: "unseen",
    OUTSIDE: "range",
    ROWS_FIGURE: "rows",
}
_OF_SHARES = ("more often", "less often")


class FigureName(NamedTuple):
    """The name of a figure.

    Attributes:
        text: the name, such as `share of 'AA'`.
        in_change: the name before a change of the value, such as `'AA'`.
    """

    text: str
    in_change: str


@dataclass(frozen=True, eq=False)
class FigureTest:
    """The test of a figure of the judged window.

    Attributes:
        name: the name of the figure in words.
        is_change: True if the figure is the difference from an earlier window.
        value: the figure.
        usual, deviation: the mean and the standard deviation that are usual in this
            window.
        score: the deviations by which the figure differs from its expected value.
        threshold: the score above which the figure is an alarm.
        p_value: the probability of such a score by chance.
    """

    series: FigureSeries
    name: FigureName
    is_change: bool
    value: float
    usual: float
    deviation: float
    score: float
    threshold: float
    p_value: float

    @property
    def check(self) -> Check:
        """The check that the figure belongs to: most are part of the distribution."""
        return _CHECKS.get(self.series.figure, "distribution")

    @property
    def is_drifted(self) -> bool:
        return self.score > self.threshold

    @property
    def ratio(self) -> float:
        return self.score / self.threshold

    @property
    def order(self) -> tuple[bool, float]:
        """The key of sorting: unusual figures that are easy to explain, then the
        others, each by their scores.
        """
        is_clear = self.ratio > 1 and self.series.figure not in VAGUE
        return not is_clear, -self.ratio


def figure_name(series: FigureSeries, bins: Mapping[str, Bins]) -> FigureName:
    of_column = bins.get(series.column)
    if series.column in PROJECTIONS:
        text = "spread of a projection"
    elif series.figure == DISTANCE and isinstance(of_column, OrderedBins):
        text = "Wasserstein distance"
    elif series.figure == DISTANCE:
        text = "Jensen–Shannon distance"
    elif series.figure in _NAMES:
        text = _NAMES[series.figure]
    else:
        # A column with intervals of numbers has no value to name.
        text = "share of the most frequent value"
        position = ("frequent", "second").index(series.figure)
        if isinstance(of_column, CategoryBins) and len(of_column.codes) > position:
            value = [*of_column.codes][position]
            if not isinstance(value, float):
                return FigureName(f"share of {value!r}", repr(value))
            text = f"share of {value:g}"
    return FigureName(text, text)


def shown_figure(figure: str, value: float) -> str:
    """Return the value of a figure as text, such as `38.28` or `1.2%`."""
    if figure == ROWS_FIGURE:
        return f"{math.exp(value):,.0f}"
    if figure in LOGARITHMIC:
        return format_number(math.exp(value), digits=3)
    if figure in _IN_UNIT:
        return format_number(value)
    return f"{value:.1%}"


def shown_deviation(figure: str, usual: float, deviation: float) -> str:
    """Return the standard deviation of a figure as text, in the unit of its value."""
    if figure in LOGARITHMIC:
        return format_number(math.exp(usual) * math.expm1(min(deviation, 50)), digits=2)
    if figure in _IN_UNIT:
        return format_number(deviation, digits=3)
    return f"{deviation:.1%}"


def describe_figure(figure: str, name: FigureName, before: float, now: float) -> str:
    """Return the change of a figure in words, such as `mean 3.2 → 8.9, higher`."""
    first = shown_figure(figure, before)
    last = shown_figure(figure, now)
    if figure == MODE:
        return f"the most frequent values are {last} times as frequent as in the reference"
    up, down = _DIRECTIONS.get(figure, _OF_SHARES)
    return f"{name.in_change} {first} → {last}, {up if now > before else down}"
