"""The verdict: does this window differ from the reference more than the reference's own windows differ from it?

1. The null (`threshold/null.py`) says which windows the reference's own are: contiguous ones if there are enough.
2. Each column has up to four figures (`threshold/null.py`): the distance of its known values, the change of its
   missing share, the shares of unseen categories and of numbers out of range. Every side has the same number of rows.
3. Over the M windows of the null distribution and the judged one, each window's figure is standardised by the mean and
   the deviation of all others. The statistic of a window is the largest of them, over all columns and segments.
4. p = (1 + #{windows with a statistic >= the judged one's}) / (M + 1), for the bootstrap 1.5 times that; drift if p <=
   the false-alarm rate. The threshold, in standard deviations, is the statistic of the window at that rank: it holds
   for the family of all columns, so a column above it and the verdict always agree.

All windows are treated alike. So for a window that is exchangeable with the reference's own the rate of false alarms is
at most the stated one, whatever the distributions are and however the columns depend on each other (conformal p-value:
Vovk, Gammerman, Shafer, Algorithmic Learning in a Random World, 2005). It holds for a trend within the reference no
more than for any method: the windows are taken as a fair sample of calm. Whether they are one, the reference itself
tells, forward in time (`threshold/distribution.py`). Measured in `benchmarks/drift.py`. Ranks instead of standard
deviations lose all power as columns multiply; logarithms and robust scales lose a part of it.

A column that is gone, new, of another type or constant is drift by itself (`column_findings.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mlflow_deploy_plugin.errors import Refused
from mlflow_deploy_plugin.monitoring.drift.column_findings import (
    describe_worst,
    judge_columns,
    judgeable_columns,
    not_judged_findings,
    schema_findings,
    sort_findings,
)
from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.references.windows import ReferencePieces
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.choose import NULLS, compared_rows, null_distribution, too_few_rows
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import (
    HoldOutAlarms,
    NullDistribution,
    NullKind,
    needed_windows,
)
from mlflow_deploy_plugin.monitoring.drift.threshold.null import ColumnGroup, judged_figures
from mlflow_deploy_plugin.monitoring.result import Finding
from mlflow_deploy_plugin.spec import MonitorSpec, duration_text

State = Literal["drift", "no drift", "not judged"]
_WEEK_SECONDS = 7 * 86_400
_NOTHING_JUDGED = Refused("nothing is judged")


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict on one window.

    Attributes:
        findings: the worst first; every column has its outcome, or why it was not judged.
        figures: the names of metrics and their values; those of columns by falling score.
        null: which windows of the reference the threshold comes from; None if distributions are not judged.
        held_out: how many of the reference's later windows are called drifted by its earlier ones.
    """

    state: State
    reason: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    notes: tuple[str, ...] = ()
    null: NullKind | None = None
    held_out: HoldOutAlarms | Refused = _NOTHING_JUDGED


@dataclass(frozen=True, eq=False)
class SegmentProfiles:
    """The rows of one segment, in the reference and in the window."""

    reference: DriftReference
    window: Profile


def judge_profile(
    reference: DriftReference,
    window: Profile,
    start_us: int,
    spec: MonitorSpec,
    cache: Path | None,
    segments: Mapping[str, SegmentProfiles] | None = None,
) -> DriftVerdict:
    """Judge the profile of one window.

    Args:
        reference: its windows are of the judged window's length and phase.
        window: over the bins of the reference.
        start_us: of the window; chooses the rows if it has more than are compared.
        cache: a folder for what the next window of the same length and size needs, too; None: nothing is kept.
        segments: by name, as `carrier=AA`; they share the one false-alarm rate with all rows.
    """
    schema = schema_findings(reference, window, spec.columns)
    rows = {"rows": float(window.rows), "reference_rows": float(reference.pieces.total.rows)}
    groups: list[ColumnGroup] = []
    unjudged: list[Finding] = []
    for name, part in {"": SegmentProfiles(reference, window), **(segments or {})}.items():
        columns, others = judgeable_columns(part.reference, part.window, spec.columns, name)
        compared = compared_rows(part.reference, part.window.rows, spec)
        reason = too_few_rows(part.reference, part.window.rows, columns, compared, spec)
        unjudged += others
        if not reason:
            groups.append(ColumnGroup(name, part.reference, part.window, columns, compared))
            continue
        unjudged += not_judged_findings(dict.fromkeys(columns, reason), name)
        if not name:
            # too few rows say nothing at all, not even about the columns that they have
            return _unjudged(rows, reason, [] if window.rows < spec.min_rows else schema, unjudged)
    null = null_distribution(groups, spec.false_alarm_rate, spec.independent_rows, cache)
    if isinstance(null, Refused):
        whole = [finding for finding in unjudged if not finding.segment]
        whole += not_judged_findings(dict.fromkeys(groups[0].columns, null.reason))
        return _unjudged(rows, null.reason, schema, whole)
    return _conclude(rows, groups, null, spec.false_alarm_rate, start_us, [*schema, *unjudged])


def _unjudged(
    rows: Mapping[str, float], reason: str, schema: Sequence[Finding], others: Sequence[Finding]
) -> DriftVerdict:
    """Return no verdict on distributions; the findings of `schema_findings` are still drift."""
    alarms = [finding for finding in schema if finding.is_alarm]
    findings = sort_findings([*schema, *others])
    if not alarms:
        return DriftVerdict("not judged", reason, findings, rows)
    worst = describe_worst([alarm.subject for alarm in alarms], alarms[0].reason)
    reason = f"{worst}; distributions are not judged: {reason}"
    return DriftVerdict("drift", reason, findings, {**rows, "is_drift": 1.0})


def _conclude(
    rows: Mapping[str, float],
    groups: Sequence[ColumnGroup],
    null: NullDistribution,
    rate: float,
    start_us: int,
    others: Sequence[Finding],
) -> DriftVerdict:
    window = np.stack([judged_figures(group, name, abs(start_us)) for group in groups for name in group.columns])
    test = null.test(window, rate)
    checked, column_figures = judge_columns(groups, null, window, test.scores, test.threshold)
    findings = sort_findings([*others, *checked])
    alarms = [finding for finding in findings if finding.is_alarm]
    is_fewer = null.independent_n < needed_windows(rate)
    worth = f", worth {_few(null.independent_n)} independent ones" if is_fewer else ""
    beside = f"p = {test.p_value:.3g} beside {len(null.figures)} {NULLS[null.kind].description}{worth}"
    reason = "no column differs from the reference more than its own windows do"
    if alarms:
        subjects = [f"{alarm.subject}{f' ({alarm.segment})' if alarm.segment else ''}" for alarm in alarms]
        reason = describe_worst(subjects, alarms[0].reason)
        if not test.is_drifted:  # a column that is gone, new, of another type or constant has no p-value
            beside = f"all other checks: {beside}"
    is_drift = test.is_drifted or any(finding.is_alarm for finding in others)
    held_out = null.held_out
    return DriftVerdict(
        state="drift" if is_drift else "no drift",
        reason=f"{reason} ({beside})",
        findings=findings,
        figures={
            **rows,
            "is_drift": float(is_drift),
            "p_value": test.p_value,
            "statistic": test.statistic,
            "threshold": test.threshold,
            **({} if isinstance(held_out, Refused) else {"measured_false_alarm_rate": held_out.share}),
            "blocks": float(len(null.figures)),
            "independent_blocks": null.independent_n,
            "compared_rows": float(groups[0].compared),
            "false_alarm_rate": rate,
            **column_figures,
        },
        notes=tuple(_notes(null, rate, groups[0].reference.pieces)),
        null=null.kind,
        held_out=held_out,
    )


def _notes(null: NullDistribution, rate: float, pieces: ReferencePieces) -> Iterator[str]:
    """Yield where the threshold comes from; then what makes more alarms than were asked for, with what would help."""
    kind, count, independent = NULLS[null.kind], len(null.figures), null.independent_n
    is_fewer = kind.is_of_steps or null.persistence > 1
    worth = f", worth {_few(independent)} independent ones" if is_fewer else ""
    drawn = f" in stretches of {null.block_length / 3600:.1f} h on average" if null.block_length else ""
    held_out = null.held_out
    measured = f"not measured: {held_out.reason}" if isinstance(held_out, Refused) else held_out.describe(rate)
    yield f"false-alarm rate: nominal {rate:g}, from {count} {kind.description}{drawn}{worth}; {measured}"
    advice = ""
    if kind.compares_with_whole:
        # in figures of `rolling:` there is neither a week's cycle nor what changes slowly
        window = pieces.grid.length_us // 1_000_000
        lag = duration_text(_WEEK_SECONDS if _WEEK_SECONDS % window == 0 else window)
        advice = f"; reference rolling:{lag} compares a window with a recent one"
    if independent < needed_windows(rate):
        yield (
            f"more windows than {rate:.1%} may be called drifted: those of the reference depend on each other, most in "
            f"{null.slowest_column}, and {count} that are worth {_few(independent)} support no rate below "
            f"{1 / (1 + independent):.1%}{advice}"
        )
    if not isinstance(held_out, Refused) and held_out.is_beyond:
        yield (
            f"more windows than {rate:.1%} are called drifted: {held_out.share:.1%} of the reference's own, mostly by "
            f"{', '.join(held_out.columns)}; by chance so many come with a probability of {held_out.p_value:.1g}"
            f"{advice}"
        )


def _few(windows: float) -> str:
    return f"{windows:.0f}" if windows >= 10 else f"{windows:.2g}"
