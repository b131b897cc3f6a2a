"""The number of rows that are compared, and the reasons for which there are too few."""

import math
from collections.abc import Sequence

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.threshold.hold_out import needed_windows
from mlflow_deploy_plugin.spec import MonitorSpec

MIN_COMPARED_ROWS = 30
_SIZE_STEP = 1.15
_PAIRS, _MOST_PAIRS = 3.0, 0.75
"""Three times as many pairs as the rate needs have the rows that are compared, or three quarters of all."""
_NO_TIMES = (
    "the reference has no event times, so there are no windows to compare with; log the model with event_time=, the "
    "column (or the values) that say when each row happened, or say independent_rows"
)


def too_few_rows(reference: DriftReference, rows: int, columns: Sequence[str], compared: int, spec: MonitorSpec) -> str:
    """Return why there is no verdict on distributions; empty if there is one."""
    if not rows:
        return "the window has no rows"
    if rows < spec.min_rows:
        return f"the window has {rows:,} rows; min_rows is {spec.min_rows:,}"
    if rows < MIN_COMPARED_ROWS:
        return f"the window has {rows} rows; at least {MIN_COMPARED_ROWS} are needed"
    if not columns:
        return "the window and the reference have no column in common that can be judged"
    pieces = reference.pieces
    if pieces.lag_windows and pieces.others.rows < MIN_COMPARED_ROWS:
        return (
            f"the window {pieces.lag_windows} windows before, with which it is compared, has {pieces.others.rows:,} "
            f"rows; at least {MIN_COMPARED_ROWS} are needed"
        )
    if spec.independent_rows:
        if reference.sample is None or len(reference.sample) < MIN_COMPARED_ROWS:
            return f"the reference has too few rows to draw samples from; at least {MIN_COMPARED_ROWS} are needed"
        return ""
    if pieces.lag_windows and not len(pieces.pairs()[0]):
        return "no window of the reference has another one so long before it: the log is too young"
    if not pieces.windows:
        return _NO_TIMES if pieces.total.rows else "the reference has no rows"
    if compared < MIN_COMPARED_ROWS:
        return (
            f"the reference has {pieces.total.rows:,} rows in {len(pieces.windows)} windows of this length, "
            f"{compared} in the middle one; at least {MIN_COMPARED_ROWS} are needed"
        )
    return ""


def compared_rows(reference: DriftReference, rows: int, spec: MonitorSpec) -> int:
    """Return how many rows every side of a comparison has: those of the window, or of the middle reference window if
    that has fewer. A window's are rounded down to a step of 15 %, so that windows of about one size share a null
    distribution.

    Where the window is compared with the one so long before, those of the smaller one of both; fewer where not so many
    pairs of the reference have as many that they tell the rate.
    """
    pieces = reference.pieces
    if pieces.lag_windows:
        rows = min(rows, pieces.others.rows)
    if spec.independent_rows or not pieces.windows:
        return rows
    sizes = np.array([window.rows for window in pieces.windows])
    if pieces.lag_windows:
        pairs = np.sort(np.minimum(*(sizes[side] for side in pieces.pairs())))
        most = max(math.ceil(_MOST_PAIRS * len(pairs)), needed_windows(spec.false_alarm_rate))
        wanted = min(math.ceil(_PAIRS / spec.false_alarm_rate), most, len(pairs))
        middle = int(pairs[-wanted]) if wanted else 0
    else:
        middle = int(np.median(sizes))
    if rows >= middle:
        return middle
    if rows < MIN_COMPARED_ROWS:
        return rows
    return _bucket(rows)


def _bucket(rows: int) -> int:
    size = float(MIN_COMPARED_ROWS)
    while int(size * _SIZE_STEP) <= rows:
        size *= _SIZE_STEP
    return int(size)
