"""The base of all null distributions: windows of the reference say what is normal.

Rows of real traffic are not independent: the weather of a day is shared by all of its flights. A test that resamples
the reference row by row calls every real day drifted (90 of 90 measured). So the windows are pieces of the reference's
own time, and their number limits the rate of false alarms: n independent windows support no rate below 1 / (n + 1).

`choose.py` takes the first of these that supports the rate:

| null | module | used if |
|---|---|---|
| `Contiguous` | `windows.py` | the reference has enough windows of the judged one's length |
| `Overlapping` | `windows.py` | it has too few of them |
| `StationaryBootstrap` | `stationary_bootstrap.py` | it has too few even so, as three months for a month |
| `Lagged` | `windows.py` | the reference is `rolling:`, and always then |
| `IndependentRows` | `independent_rows.py` | the monitor's spec says that rows are independent, and always then |

Each of them has `cut`, which makes its windows of the reference; `compare`, which gives the figures of these windows as
a `NullDistribution`; `hold_out`, which counts the false alarms that come (`distribution.py`); and `describe`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.references.windows import ReferencePieces
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import Array
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.dependence import persistence
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    FLOORS,
    HeldOut,
    NullDistribution,
    NullKind,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.figures import (
    FIGURES,
    ColumnGroup,
    WindowCounts,
    column_counts,
    column_rng,
)

MAX_WINDOWS = 500


class Null(ABC):
    """A way to tell from the reference how far a window differs if nothing has changed.

    Attributes:
        counts_fewer: its windows are worth fewer independent ones than there are, which is said in any case.
        compares_with_whole: a window is compared with the whole reference, not with one window or with drawn rows.
    """

    kind: ClassVar[NullKind]
    description: ClassVar[str]
    counts_fewer: ClassVar[bool] = False
    compares_with_whole: ClassVar[bool] = True

    @abstractmethod
    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        """Return the figures of the null's windows in every group."""

    @abstractmethod
    def hold_out(self, groups: Sequence[ColumnGroup], rate: float) -> HeldOut | Refused:
        """Return tests of the reference's own windows by rows that are not theirs."""

    def persistence(self, group: ColumnGroup) -> tuple[float, str]:
        """Return how many windows are worth one independent one, and the column that says so."""
        return 1.0, ""

    @classmethod
    def describe(cls, windows: int) -> str:
        """Return the windows that the threshold comes from, as `60 windows of the reference`."""
        return f"{windows} {cls.description}"


@dataclass(frozen=True, eq=False)
class WindowNull(Null):
    """Windows that are made of the reference's pieces: its own windows or its steps.

    Attributes:
        effective_n: how many independent windows they stand for.
    """

    effective_n: float

    def aligned(self, whole: ReferencePieces, part: ReferencePieces) -> tuple[Profile, ...]:
        """Return the pieces that the windows are made of: those of `part`, a segment, in the places of `whole`'s."""
        return part.windows_at(whole.window_starts_us)

    @abstractmethod
    def compared_windows(
        self, group: ColumnGroup, name: str, profiles: Sequence[Profile], rng: np.random.Generator
    ) -> tuple[WindowCounts, Array]:
        """Return one column of every window, and [M, K + 1] the counts that each of them is compared with.

        Args:
            profiles: the aligned pieces.
        """

    def column_figures(
        self, group: ColumnGroup, name: str, profiles: Sequence[Profile], rng: np.random.Generator
    ) -> tuple[Array, Array]:
        """Return [M, FIGURES] of one column of every window, and the scales [FIGURES].

        Figures are NaN where a side has fewer than half of the compared rows.
        """
        windows, complements = self.compared_windows(group, name, profiles, rng)
        figures = windows.subsampled(group.compared, rng).figures(group.reference.bins[name], complements)
        rows = np.minimum(windows.counts.sum(axis=1), complements.sum(axis=1))
        figures[2 * rows < group.compared] = np.nan
        return figures, np.ones(FIGURES)

    def compare(self, groups: Sequence[ColumnGroup]) -> NullDistribution:
        figures, scales = [], []
        for group in groups:
            profiles = self.aligned(groups[0].reference.pieces, group.reference.pieces)
            for name in group.columns:
                column, scale = self.column_figures(group, name, profiles, column_rng(group.segment + name))
                figures.append(column)
                scales.append(scale)
        return NullDistribution(self.kind, np.stack(figures, axis=1), np.stack(scales), FLOORS, self.effective_n)

    def persistence(self, group: ColumnGroup) -> tuple[float, str]:
        windows = group.reference.pieces.windows
        return slowest_column({name: column_level(group, name, windows) for name in group.columns})


def column_names(groups: Sequence[ColumnGroup]) -> list[str]:
    """Return the columns of all groups as people read them: `delay of carrier=AA`."""
    return [f"{name} of {group.segment}" if group.segment else name for group in groups for name in group.columns]


def row_counts(profiles: Sequence[Profile]) -> Array:
    """Return [P] int64: the rows of each profile."""
    return np.array([profile.rows for profile in profiles], dtype=np.int64)


def slowest_column(levels: Mapping[str, Array]) -> tuple[float, str]:
    """Return how many windows in a row are worth one independent one, and the name of the column that says so: the one
    whose level depends most on the window before. Return 1 and no name if none does.

    The levels tell it, not the distances: those have the square of the coefficient, and on made days that depend on
    the day before with one of 0.5 to 0.95 they promised 3 to 18 % where 6 to 57 % came; the levels 4 to 69 %. Of pairs
    the distances tell it, since none stands beside all others.

    Args:
        levels: of each column in the windows, in the order of time.
    """
    found = [(persistence(level, len(levels)), name) for name, level in levels.items()]
    longest, name = max(found, default=(1.0, ""))
    return (longest, name) if longest > 1 else (1.0, "")


def column_level(group: ColumnGroup, name: str, profiles: Sequence[Profile]) -> Array:
    """Return the level of a column in the profiles that have values of it: the mean, or the share of the first
    category."""
    bins = group.reference.bins[name]
    known = column_counts(profiles, name, bins)[:, :-1]
    rows = known.sum(axis=1)
    known, rows = known[rows > 0], rows[rows > 0]
    level: Array = (known @ bins.positions if isinstance(bins, OrderedBins) else known[:, 0]) / rows
    return level
