"""The course of the figures until a judged window: the windows of the reference, the
past and the judged window, as the detector follows them, and the test of the judged
window alone.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from mlflow_deploy_plugin.core.errors import InvalidConfig, Refused
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH
from mlflow_deploy_plugin.serve.inference_log.windows import microseconds
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.relations import PROJECTIONS, RELATIONS
from mlflow_deploy_plugin.watch.result import WindowRequest
from mlflow_deploy_plugin.watch.sequential import budget
from mlflow_deploy_plugin.watch.sequential.detector import (
    Tracking,
    Windows,
    limit_for,
    reference_innovations,
    track,
)
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence
from mlflow_deploy_plugin.watch.sequential.figures import FigureTest, figure_name
from mlflow_deploy_plugin.watch.sequential.levels import (
    DISTANCE,
    NEARLY_NORMAL,
    ROWS,
    ROWS_FIGURE,
    FigureSeries,
    ReferenceLevels,
    reference_levels,
)
from mlflow_deploy_plugin.watch.sequential.tails import Tails

_FIRST_WINDOWS = 7
_COMPARABLE = math.log(1.5)
"""The number of rows is compared with the reference only if the first judged windows
have about as many: a reference may be a sample of the traffic.
"""


@dataclass(frozen=True, eq=False)
class Course:
    """The windows of the reference, the past and the judged window, and what the
    detector has found.

    Attributes:
        request: the request, without a budget if the reference is too short for the
            default budget.
        rate: the false alarms per window for single windows.
        limits: the innovation above which a figure of a single window is unusual, [m].
        shortfall: the reason why the budget is not kept; otherwise empty.
    """

    request: WindowRequest
    reference: DriftReference
    levels: ReferenceLevels
    starts: Sequence[datetime]
    windows: Windows
    rate: float
    tails: Tails
    limits: Array
    tracking: Tracking
    shortfall: str

    @property
    def spec(self) -> MonitorSpec:
        return self.request.spec

    @property
    def series(self) -> Sequence[FigureSeries]:
        return self.levels.series

    @property
    def values(self) -> Array:
        """The figures of the windows with their trend, [N, m]."""
        values: Array = self.windows.values + self.windows.trends
        return values

    def tests(self) -> Iterator[FigureTest]:
        """Yield the test of each figure that is known in the judged window."""
        tracking = self.tracking
        values = self.values[-1]
        usual = values - tracking.levels[-1] + tracking.baseline.mean
        deviation = tracking.baseline.deviation * self.windows.scales[-1]
        scores = tracking.innovations[-1]
        tails = self.tails.p_values(scores)
        one_sided = np.where(scores > 0, tails, 1 - tails)
        p_values = np.where(self.windows.is_upward, one_sided, 2 * tails)
        scores = np.where(self.windows.is_upward, np.maximum(scores, 0), np.abs(scores))
        shown = np.stack([values, usual, usual + deviation])
        shown[:, self.levels.is_distance] = shown[:, self.levels.is_distance].clip(min=0) ** (
            1 / NEARLY_NORMAL
        )
        is_lagged = self.reference.pieces.grid.lag_windows > 0
        for index in np.flatnonzero(np.isfinite(values)).tolist():
            series = self.series[index]
            if series.column == ROWS and self.windows.restarts[index] == len(self.starts) - 1:
                continue
            yield FigureTest(
                series,
                figure_name(series, self.reference.bins),
                is_lagged and series.figure not in (DISTANCE, ROWS_FIGURE),
                float(shown[0, index]),
                float(shown[1, index]),
                float(shown[2, index] - shown[1, index]),
                float(scores[index]),
                float(self.limits[index]),
                float(p_values[index]),
            )


def follow(
    request: WindowRequest,
    reference: DriftReference,
    segments: Mapping[str, DriftReference],
    columns: Sequence[str],
    evidence: Evidence,
) -> Course | Refused:
    """Follow the figures of the `columns` until the requested window, which has the
    `evidence`; Refused if the reference has too few windows.
    """
    spec = request.spec
    start_us = request.window.start_us
    levels = reference_levels(reference, columns, segments)
    past = [
        window
        for window in request.past
        if window.evidence.basis == evidence.basis and microseconds(window.start) < start_us
    ]
    judged = np.array([*(microseconds(window.start) for window in past), start_us], np.int64)
    levels = levels.since(levels.starts_us != judged[-1])
    if spec.is_rolling:
        # A rolling reference contains all windows before the judged window: keep those
        # before the first judged window, but at least the first windows.
        older = levels.starts_us < judged[0]
        if older.sum() < budget.FEWEST_WINDOWS:
            older = np.arange(len(older)) < budget.FEW_WINDOWS
        levels = levels.since(older)
    try:
        budget.require_windows(reference, levels, spec, budget.FEWEST_OF_ONE)
        outside = ~np.isin(judged, levels.starts_us)
        judged = judged[outside]
        levels = budget.follow_trends(levels, spec)
        by_window = [*(window.evidence.levels for window in past), evidence.levels]
        windows = budget.detector_windows(
            levels,
            spec,
            judged,
            levels.values_of(by_window)[outside],
            levels.rows_of(by_window)[outside],
        )
    except InvalidConfig as error:
        return Refused(error.message)
    starts = [EPOCH + timedelta(microseconds=int(start)) for start in (*levels.starts_us, *judged)]
    windows = replace(windows, restarts=_restarts(windows, starts, levels, request.baseline))
    return _track(request, reference, levels, starts, windows)


def _track(
    request: WindowRequest,
    reference: DriftReference,
    levels: ReferenceLevels,
    starts: Sequence[datetime],
    windows: Windows,
) -> Course:
    """Return the course of the windows, which begin at `starts`, with the limits of the
    budget or of the false-alarm rate.
    """
    spec = request.spec
    rate = spec.window_rate
    limit = math.inf
    shortfall = ""
    if request.false_per_year:
        try:
            budget.require_windows(reference, levels, spec, budget.FEWEST_WINDOWS)
            limit = limit_for(windows, budget.lasting_rate(spec, request.false_per_year))
        except InvalidConfig as error:
            shortfall = error.message
            if request.has_default_budget:
                request = replace(request, false_per_year=None)
                shortfall += f". Until then, {rate:g} of the windows may be false alarms"
    if request.false_per_year:
        rate = budget.single_window_rate(spec, request.false_per_year)
    kinds = [
        RELATIONS if series.column in PROJECTIONS else series.figure for series in levels.series
    ]
    innovations, deviations = reference_innovations(windows)
    tails = Tails(innovations, windows.season, kinds, deviations)
    limits = tails.limits(rate / len(levels.series) / np.where(windows.is_upward, 1, 2))
    return Course(
        request=request,
        reference=reference,
        levels=levels,
        starts=starts,
        windows=windows,
        rate=rate,
        tails=tails,
        limits=limits,
        tracking=track(windows, limit, limits),
        shortfall=shortfall,
    )


def _restarts(
    windows: Windows,
    starts: Sequence[datetime],
    levels: ReferenceLevels,
    baseline: Mapping[str, datetime],
) -> Array:
    """Return the window at which the accepted baseline of each series begins, [m]
    int64; the number of windows without one. A changed column also changes the
    relations, so these begin a baseline with the last accepted column of their segment.
    """
    count = len(starts)
    restarts = np.full(len(levels.series), count)
    for index, series in enumerate(levels.series):
        accepted = [baseline[series.key]] if series.key in baseline else []
        if series.column in PROJECTIONS:
            # The `alarm_key` of a column in a segment begins with the segment.
            for key, since in baseline.items():
                is_alike = "=" not in key
                if series.segment:
                    is_alike = key.startswith(f"{series.segment}/")
                if is_alike:
                    accepted.append(since)
        if accepted:
            restarts[index] = next(
                (
                    window
                    for window in range(windows.reference, count)
                    if starts[window] >= max(accepted)
                ),
                count,
            )
        elif series.column == ROWS:
            # The first judged windows must have about as many rows as the reference.
            rows = windows.values[:, index]
            first = rows[windows.reference : -1][:_FIRST_WINDOWS]
            first = first[np.isfinite(first)]
            change = math.inf
            if len(first):
                change = np.median(first) - np.nanmedian(rows[: windows.reference])
            if not abs(change) < _COMPARABLE:
                restarts[index] = min(windows.reference, count - 1)
    return restarts
