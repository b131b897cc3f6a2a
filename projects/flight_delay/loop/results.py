"""The results of the replay: accuracy per month with and without the loop, the
verdicts, and a plot.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

from projects.flight_delay.data import DAY, EVENT_TIME, LABEL, YEAR
from projects.flight_delay.loop.injected_drift import Injection
from projects.flight_delay.training_data import parse_months

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

_HEIGHT = {"accuracy": 0.09, "drift": 0.16}
"""The distance between a monitor's marks and the lowest accuracy, as a share of the
range of accuracies.
"""
_CALM = "#9aa5b1"
_ALARM = "#d64545"
_LOOP = "#0b69a3"
_STILL = "#7b8794"
_INJECTED = "#f7d070"


@dataclass(frozen=True)
class JudgedWindow:
    """A window and a monitor's verdict on it."""

    monitor: str
    start: pd.Timestamp
    end: pd.Timestamp
    verdict: str
    reason: str


@dataclass(frozen=True)
class ServedVersionChange:
    """A change of the served version. `at` is the event time from which only this
    version predicts.
    """

    at: pd.Timestamp
    version: str


def accuracy_by_month(flights: pd.DataFrame, injection: Injection | None = None) -> pd.DataFrame:
    """Return a row per month: flights, share of delays, and the accuracy with the loop,
    without it and of `on time`.

    With an injection, a column marks the changed months.

    Args:
        flights: flights with LABEL, `prediction`, `still` (the prediction of the first
            version) and `version`.
    """
    of_year = flights[flights[DAY].dt.year == YEAR]
    rows = []
    for month, of_month in of_year.groupby(of_year[DAY].dt.month):
        delayed = of_month[LABEL]
        loop = (of_month["prediction"] == delayed).mean()
        still = (of_month["still"] == delayed).mean()
        rows.append(
            {
                "month": int(month),
                "flights": len(of_month),
                "delayed": float(delayed.mean()),
                "accuracy_with_loop": float(loop),
                "accuracy_without": float(still),
                "difference": float(loop - still),
                "standard_error": _standard_error(of_month),
                "always_on_time": float(1 - delayed.mean()),
                "versions": " ".join(sorted(of_month["version"].unique(), key=int)),
            },
        )
    table = pd.DataFrame(rows)
    if injection is not None:
        table["injected"] = np.where(table["month"] >= injection.month, injection.kind, "")
    return table


def verdicts(judged: Sequence[JudgedWindow], injection: Injection | None = None) -> pd.DataFrame:
    """Return a row per window. With an injection,
    a column marks the changed windows.
    """
    table = pd.DataFrame(
        [vars(window) for window in judged],
        columns=[field.name for field in fields(JudgedWindow)],
    )
    if injection is not None:
        table["injected"] = np.where(table["end"] > injection.begins, injection.kind, "")
    return table


def _standard_error(flights: pd.DataFrame) -> float:
    """Return the standard error of the difference of accuracies, by day, because
    flights of a day share the weather.
    """
    right = (flights["prediction"] == flights[LABEL]).astype(float) - (
        flights["still"] == flights[LABEL]
    ).astype(float)
    days = pd.DataFrame({"day": flights[DAY], "right": right}).groupby("day")["right"]
    sums = days.sum()
    counts = days.count()
    if len(sums) < 2:
        return float("nan")
    residuals = sums - counts * right.mean()
    return float(np.sqrt((residuals**2).sum() * len(sums) / (len(sums) - 1)) / counts.sum())


def served_version_changes(flights: pd.DataFrame) -> list[ServedVersionChange]:
    """Return the changes of the served version, with their times."""
    changes = []
    last = ""
    for version, of_version in sorted(
        flights.groupby("version"),
        key=lambda item: int(str(item[0])),
    ):
        later = flights[flights[EVENT_TIME] >= of_version[EVENT_TIME].min()]
        alone = later[later["version"] == version]
        if last:
            changes.append(ServedVersionChange(alone[EVENT_TIME].min(), str(version)))
        last = str(version)
    return changes


def draw_plot(
    months: pd.DataFrame,
    judged: Sequence[JudgedWindow],
    promoted: Sequence[ServedVersionChange],
    target: Path,
    injection: Injection | None = None,
) -> None:
    """Draw the plot as PNG."""
    figure, axes = pyplot.subplots(figsize=(8.6, 4.2), dpi=90)
    middle = [pd.Timestamp(YEAR, int(month), 15) for month in months["month"]]
    axes.plot(middle, months["accuracy_with_loop"], "o-", color=_LOOP, label="with the loop")
    axes.plot(
        middle,
        months["accuracy_without"],
        "s--",
        color=_STILL,
        label="first version all year",
    )
    axes.plot(middle, months["always_on_time"], ":", color="#cbd2d9", label="always “on time”")
    _draw_verdicts(axes, months, judged)
    for change in promoted:
        axes.axvline(change.at.tz_localize(None), color=_LOOP, alpha=0.25, linewidth=1)
    if injection is not None:
        begins, (_, end) = matplotlib.dates.date2num(injection.begins), axes.get_xlim()
        axes.axvspan(
            begins,
            max(begins, end),
            color=_INJECTED,
            alpha=0.2,
            linewidth=0,
            label="injected drift",
        )
        axes.set_title(f"{injection}", fontsize=8, color=_ALARM)
    figure.suptitle(
        "Flights of 2013, accuracy by month" + (", with INJECTED drift" if injection else ""),
    )
    axes.set(ylabel="accuracy")
    axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%b"))
    axes.xaxis.set_major_locator(matplotlib.dates.MonthLocator())
    axes.legend(loc="lower left", fontsize=8, bbox_to_anchor=(0, 0.17))
    axes.grid(alpha=0.25)
    caption = (
        "squares: verdicts on windows, red: alarm (drift, accuracy violated); vertical lines: new "
        "served version"
    )
    figure.text(0.01, 0.01, caption, fontsize=7)
    figure.tight_layout(rect=(0, 0.03, 0.97, 1))
    figure.savefig(target)
    pyplot.close(figure)


def _draw_verdicts(axes: Axes, months: pd.DataFrame, judged: Sequence[JudgedWindow]) -> None:
    """Draw a line of marks for each monitor, below the accuracies."""
    accuracies = months[["accuracy_with_loop", "accuracy_without", "always_on_time"]].to_numpy()
    low = float(accuracies.min())
    span = max(float(np.ptp(accuracies)), 0.05)
    for window in judged:
        middle = matplotlib.dates.date2num(
            window.start.tz_localize(None) + (window.end - window.start) / 2,
        )
        color = _ALARM if window.verdict in ("drift", "violated") else _CALM
        shape = (
            "s"
            if window.verdict in ("drift", "no drift", "violated", "kept", "cannot tell")
            else "x"
        )
        axes.plot(
            [middle],
            [low - _HEIGHT[window.monitor] * span],
            shape,
            color=color,
            markersize=4,
        )
    for name, height in _HEIGHT.items():
        axes.text(
            1.01,
            low - height * span,
            name,
            transform=axes.get_yaxis_transform(),
            fontsize=8,
            va="center",
        )


def conclusion(months: pd.DataFrame, trained_on: str) -> list[str]:
    """Return sentences with the conclusion from the figures."""
    first, last = parse_months(trained_on)
    later = months[~months["month"].between(first, last)]
    if later.empty:
        return ["there are no months after the training months"]
    early = months[months["month"].between(first, last)]
    lines = []
    if not early.empty:
        drop = early["accuracy_without"].mean() - later["accuracy_without"].mean()
        lines.append(
            f"without the loop: accuracy {early['accuracy_without'].mean():.4f} in the training "
            f"months, {later['accuracy_without'].mean():.4f} after them (change {-drop:+.4f}); "
            f"always `on time`: {early['always_on_time'].mean():.4f} and "
            f"{later['always_on_time'].mean():.4f}",
        )
    weights = later["flights"] / later["flights"].sum()
    gain = float((later["difference"] * weights).sum())
    error = float(np.sqrt(((later["standard_error"] * weights) ** 2).sum()))
    lines.append(
        f"with the loop, after the training months: {gain:+.4f} ± {1.96 * error:.4f} (95 %, over "
        "days)",
    )
    sure = later[later["difference"].abs() > 1.96 * later["standard_error"]]
    better = sure[sure["difference"] > 0]["month"].tolist()
    worse = sure[sure["difference"] < 0]["month"].tolist()
    lines.append(
        f"significantly better months: {better or 'none'}; significantly worse months: "
        f"{worse or 'none'}",
    )
    return lines
