"""The verdict on a window: does it differ from the reference more than the reference's
own windows do?

Rows of real traffic are not independent: a test that resamples rows of the reference
calls every real day drifted (90 of 90 measured). Therefore each figure of the window
(`sequential/levels.py`) is compared with the same figure of the reference's windows and
of the windows before (`sequential/course.py`). The figures of all columns and segments
share one false-alarm rate (Bonferroni). Only if the monitor's spec declares that rows
are independent, the window is compared with windows of random rows
(`references/windows.py`).

A removed, new, retyped or constant column is drift without a test
(`column_findings.py`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import EPOCH, duration_seconds
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift import column_findings
from mlflow_deploy_plugin.watch.drift.column_findings import (
    MIN_COMPARED_ROWS,
    ColumnGroup,
    ColumnTests,
)
from mlflow_deploy_plugin.watch.drift.references.windows import (
    END,
    RANDOM_WINDOWS,
    DriftReference,
    with_random_windows,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.result import Finding, WindowRequest
from mlflow_deploy_plugin.watch.sequential.budget import FEWEST_OF_ONE, few_rows
from mlflow_deploy_plugin.watch.sequential.course import Course, follow
from mlflow_deploy_plugin.watch.sequential.evidence import Evidence, Outcome, SeriesKey
from mlflow_deploy_plugin.watch.sequential.figures import FigureTest
from mlflow_deploy_plugin.watch.sequential.levels import (
    ROWS,
    ROWS_FIGURE,
    SHARES,
    FigureSeries,
    window_levels,
)

State = Literal["drift", "no drift", "not judged"]
_WEEK = "7d"
_NO_TIMES = (
    "the reference has no event times, so there are no windows to compare with; log the model "
    "with event_time= (the column or the values with the time of each row), or set "
    "independent_rows"
)


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict on one window.

    Attributes:
        reason: the reason of a verdict without alarms.
        findings: the outcome of every column, or the reason why the column was not
            judged; the worst finding is first.
        figures: metrics by name; metrics of columns are sorted by decreasing score.
        largest: the score that is closest to its threshold, or the farthest beyond it,
            with the threshold; None if distributions are not judged.
        course: the course of the figures until the window; None if it is not followed.
        evidence: the figures of the window for later judgements.
    """

    state: State
    reason: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()
    largest: Outcome | None = None
    course: Course | None = None
    evidence: Evidence = field(default_factory=Evidence)


def judge_profile(
    request: WindowRequest,
    reference: DriftReference,
    window: Profile,
    segments: Mapping[str, tuple[DriftReference, Profile]],
    rows: int = 0,
) -> DriftVerdict:
    """Judge the profile of the requested window.

    Args:
        segments: the segments by name, such as `carrier=AA`. The segments and all rows
            together share one false-alarm rate.
        rows: the rows of the window that all versions have answered; 0 if they are
            those of the profile.
    """
    spec = request.spec
    schema: list[Finding] = []
    if window.rows >= spec.min_rows:
        schema = column_findings.schema_findings(reference, window, spec.columns)
    parts = {"": (reference, window), **segments}
    all_groups = [_column_group(segment, *parts[segment], spec) for segment in parts]
    whole = all_groups[0]
    groups = [group for group in all_groups if not group.reason and not whole.reason]
    columns = sorted({*chain.from_iterable(group.columns for group in all_groups)})
    if not spec.columns or ROWS in spec.columns:
        columns.append(ROWS)
    # Later judgements need the figures of the judged groups, and the numbers of rows of
    # the others.
    levels: dict[SeriesKey, float] = {}
    for group in all_groups:
        levels |= window_levels(
            group.reference,
            group.window,
            columns if group in groups else (),
            group.segment,
            0 if group.segment else rows,
        )
    basis = spec.reference if spec.is_rolling else reference.bins_key
    evidence = Evidence(basis, levels)
    of_segments = {group.segment: group.reference for group in all_groups[1:]}
    course = follow(request, reference, of_segments, columns, evidence)
    test = _test_window(request, groups, columns, evidence, course)
    if whole.reason:
        if isinstance(test, _WindowTest):
            schema += column_findings.rows_findings(test.columns)
        verdict = _unjudged(whole, schema)
    elif isinstance(test, Refused):
        reasons = dict.fromkeys(whole.columns, test.reason)
        schema += column_findings.not_judged_findings(reasons)
        verdict = _unjudged(replace(whole, reason=test.reason), schema)
    else:
        schema += chain.from_iterable(group.unjudged for group in all_groups)
        verdict = _conclude(request, groups, test, schema)
    followed = None if isinstance(course, Refused) else course
    return replace(verdict, evidence=evidence, course=followed)


def _has_random_windows(reference: DriftReference, spec: MonitorSpec) -> bool:
    """Return True if the windows of the reference are random rows."""
    has_few_windows = len(reference.pieces.windows) < FEWEST_OF_ONE
    return spec.independent_rows and not spec.is_rolling and has_few_windows


def _column_group(
    segment: str,
    reference: DriftReference,
    window: Profile,
    spec: MonitorSpec,
) -> ColumnGroup:
    """Return the columns of a segment (empty: of all rows) that can be judged."""
    names, unjudged = column_findings.judgeable_columns(reference, window, spec.columns, segment)
    group = ColumnGroup(segment, reference, window, names, unjudged)
    reason = too_few_rows(group, spec)
    if not reason:
        return group
    others = column_findings.not_judged_findings(dict.fromkeys(names, reason), segment)
    return replace(group, unjudged=[*unjudged, *others], reason=reason)


def _unjudged(whole: ColumnGroup, schema: Sequence[Finding]) -> DriftVerdict:
    """Return a verdict for distributions that are not judged: drift if a finding of the
    schema or of the number of rows is an alarm.
    """
    findings = column_findings.sort_findings([*schema, *whole.unjudged])
    figures = whole.figures
    if not any(finding.is_alarm for finding in schema):
        return DriftVerdict("not judged", whole.reason, findings, figures)
    return DriftVerdict("drift", whole.reason, findings, {**figures, "is_drift": 1.0})


@dataclass(frozen=True, eq=False)
class _WindowTest:
    """The tests of all checks of a window.

    Attributes:
        columns: the tests of each column, by segment and column.
        rate: the false-alarm rate of the window.
        p_value: the probability that a window without drift differs as much.
        largest: the test that is closest to its threshold, or the farthest beyond it.
        compared: the number of windows or samples that the window is compared with,
            and what they are, such as `90 windows of the reference`.
    """

    columns: ColumnTests
    rate: float
    p_value: float
    largest: FigureTest
    compared: tuple[int, str]


def _test_window(
    request: WindowRequest,
    groups: Sequence[ColumnGroup],
    columns: Sequence[str],
    evidence: Evidence,
    course: Course | Refused,
) -> _WindowTest | Refused:
    """Return the tests of the figures; those of random windows of the reference say
    nothing about the number of rows. The first of the groups, if any, has all rows.
    """
    if not isinstance(course, Refused):
        return _test_figures(course)
    if groups and _has_random_windows(groups[0].reference, request.spec):
        parts = {
            group.segment: with_random_windows(group.reference, group.window.rows)
            for group in groups
        }
        # With this number of rows, a mean is as precise as its difference from the mean
        # of the reference.
        levels = dict(evidence.levels)
        for group in groups:
            rows = 1 / (1 / group.window.rows + 1 / group.reference.pieces.total.rows)
            levels[FigureSeries(group.segment, ROWS, ROWS_FIGURE).rows_key] = math.log(rows)
        # The judged window follows the random windows, without a past or a budget.
        end = EPOCH + END
        follows_random = replace(
            request,
            spec=request.spec.model_copy(update={"season": None}),
            window=Window(end, end + request.window.length),
            past=(),
            baseline={},
            false_per_year=None,
        )
        random_course = follow(
            follows_random,
            parts.pop(""),
            parts,
            [name for name in columns if name != ROWS],
            replace(evidence, levels=levels),
        )
        if isinstance(random_course, Refused):
            return random_course
        test = _test_figures(random_course)
        if isinstance(test, Refused):
            return test
        return replace(test, compared=(RANDOM_WINDOWS, "windows of random rows"))
    return course


def _test_figures(course: Course) -> _WindowTest | Refused:
    """Return the tests of the figures. The test of a column's distribution is that of
    its most unusual figure.
    """
    columns: dict[tuple[str, str], list[FigureTest]] = {}
    p_values = []
    for test in sorted(course.tests(), key=lambda test: test.order):
        p_values.append(test.p_value)
        checks = columns.setdefault((test.series.segment, test.series.column), [])
        if test.check not in [check.check for check in checks]:
            if test.series.figure in SHARES and not test.is_change:
                test = replace(test, usual=max(0.0, test.usual))
            checks.append(test)
    if not p_values:
        return Refused("the reference's own windows have no figure to compare with")
    count = course.windows.reference
    return _WindowTest(
        columns,
        course.rate,
        min(1.0, len(course.series) * min(p_values)),
        max(chain.from_iterable(columns.values()), key=lambda check: check.ratio),
        (count, "windows of the reference"),
    )


def _conclude(
    request: WindowRequest,
    groups: Sequence[ColumnGroup],
    test: _WindowTest,
    others: Sequence[Finding],
) -> DriftVerdict:
    """Return the verdict of the tests.

    Args:
        others: the findings about columns whose distributions are not judged.
    """
    checked, column_figures = column_findings.judge_columns(
        groups,
        test.columns,
        request.window.start_us,
        1_000_000 * duration_seconds(request.spec.season or _WEEK),
    )
    count, compared = test.compared
    is_drift = test.largest.is_drifted or any(finding.is_alarm for finding in others)
    state: State = "drift" if is_drift else "no drift"
    return DriftVerdict(
        state=state,
        reason="no column differs from the reference more than its own windows do "
        f"(p = {test.p_value:.3g} compared with {count} {compared})",
        findings=column_findings.sort_findings([*others, *checked]),
        figures={
            **groups[0].figures,
            "is_drift": float(is_drift),
            "p_value": test.p_value,
            "statistic": test.largest.score,
            "threshold": test.largest.threshold,
            "blocks": float(count),
            "false_alarm_rate": test.rate,
            **column_figures,
        },
        notes=(
            f"single windows: nominal {test.rate:.2g} false alarms per window, from {count} "
            f"{compared}",
        ),
        largest=Outcome("distribution", state, test.largest.score, test.largest.threshold),
    )


def too_few_rows(group: ColumnGroup, spec: MonitorSpec) -> str:
    """Return the reason why distributions cannot be judged, or an empty text."""
    rows = group.window.rows
    if not rows:
        return "the window has no rows"
    if rows < spec.min_rows:
        return f"the window has {rows:,} rows; min_rows is {spec.min_rows:,}"
    if rows < MIN_COMPARED_ROWS:
        return f"the window has {rows} rows; at least {MIN_COMPARED_ROWS} are needed"
    if not group.columns:
        return "the window and the reference have no column in common that can be judged"
    pieces = group.reference.pieces
    if pieces.grid.lag_windows and pieces.others.rows < MIN_COMPARED_ROWS:
        return (
            f"the window is compared with the window {pieces.grid.lag_windows} windows before, "
            f"which has {pieces.others.rows:,} rows; at least {MIN_COMPARED_ROWS} are needed"
        )
    if _has_random_windows(group.reference, spec):
        if len(group.reference.sample) < MIN_COMPARED_ROWS:
            return f"the reference has too few rows; at least {MIN_COMPARED_ROWS} are needed"
        return ""
    if pieces.grid.lag_windows and not len(pieces.pairs()[0]):
        return "the log is too short: no window of the reference has an earlier window at this lag"
    if not pieces.windows:
        if pieces.total.rows:
            return _NO_TIMES
        return "the reference has no rows"
    return few_rows(pieces)
