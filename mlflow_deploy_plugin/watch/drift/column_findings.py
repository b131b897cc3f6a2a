"""The findings about each column: the checks that need no threshold, and the texts for
all checks.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference, ReferencePieces
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, CategoryBins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import (
    PROJECTIONS,
    relation_tables,
    shown_name,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import ColumnSketch, Profile, merge
from mlflow_deploy_plugin.watch.drift.threshold.distribution import NullDistribution
from mlflow_deploy_plugin.watch.drift.threshold.null import (
    DISTANCE,
    MIN_COMPARED_ROWS,
    MISSING,
    ColumnGroup,
)
from mlflow_deploy_plugin.watch.result import EXACT, Check, Finding, State, same_phase

CHECKS: tuple[Check, Check, Check, Check] = ("distribution", "missing", "unseen", "range")
"""The name of the check for each of the four figures in `threshold/null.py`, in the
order of the figures.
"""
_MEASURES: Mapping[Check, str] = {
    "missing": "share of missing values",
    "unseen": "share of new values",
    "range": "share out of range",
}
_SHOWN = 3
_UNLIKELY = 1e-6
"""The probability, given the frequencies of values in the reference, below which a
constant column is drift.
"""
_FEW_WINDOWS = 19
"""The number of reference windows below which the steps are also checked for constant
values. Without this check, a flag that changes every other week was called drifted in
10 % of the months after a reference of three months.
"""
_DISTANCES = {
    "int",
    "uint",
    "halffloat",
    "float",
    "double",
    "decimal",
    "bool",
    "string",
    "large_string",
    "dictionary",
}
"""The types whose distributions can be compared. A column of such a type has no bins
only if it was not requested.
"""


def schema_findings(
    reference: DriftReference,
    window: Profile,
    columns: Sequence[str],
) -> list[Finding]:
    """Return a finding for each new, removed, retyped or constant column. These
    findings need no threshold: a column that is also missing or constant in a window of
    the reference is not drift.
    """
    findings = (
        _schema_finding(name, reference, window)
        for name in _column_names(reference, window, columns)
    )
    return [finding for finding in findings if finding is not None]


def _column_names(reference: DriftReference, window: Profile, columns: Sequence[str]) -> list[str]:
    names = sorted({*reference.bins, *reference.pieces.total.columns, *window.columns})
    return [name for name in names if name not in PROJECTIONS and (not columns or name in columns)]


def _schema_finding(name: str, reference: DriftReference, window: Profile) -> Finding | None:
    expected = reference.pieces.total.columns.get(name)
    current = window.columns.get(name)

    def drift(check: Check, reason: str, change: str, value: float = 1.0) -> Finding:
        return Finding(name, check, "drift", reason, value, 0.0, change=change)

    if current is None or current.rows == 0:
        some = sum(name not in piece.columns for piece in reference.pieces.windows)
        if some:
            reason = (
                f"the column is missing, as in {some} of the reference's "
                f"{len(reference.pieces.windows)} windows"
            )
            return Finding(name, "presence", "no drift", reason)
        return drift("presence", "the column is in the reference, but not in the window", "gone")
    if expected is None:
        return drift(
            "presence",
            f"the column is in the window ({current.arrow_type}), but not in the reference",
            "new",
        )
    if current.mistyped and not expected.mistyped:
        present_rows = current.rows - current.missing
        usual = expected.arrow_type or current.expected_type
        reason = (
            f"{current.mistyped:,} of {present_rows:,} values have type {current.arrow_type}; the "
            f"reference has {usual}"
        )
        return drift(
            "type",
            reason,
            f"{usual} → {current.arrow_type}",
            current.mistyped / max(present_rows, 1),
        )
    # Check columns without a judged distribution (times, binary values) for a change of
    # type.
    is_judged = name in reference.bins or _families(expected) & _DISTANCES
    if (
        not is_judged
        and current.missing < current.rows
        and _families(expected).isdisjoint(_families(current))
    ):
        reason = f"the type is {current.arrow_type}; the reference has {expected.arrow_type}"
        return drift("type", reason, f"{expected.arrow_type} → {current.arrow_type}")
    return _constant_finding(name, reference, expected, current)


def _constant_finding(
    name: str,
    reference: DriftReference,
    expected: ColumnSketch,
    current: ColumnSketch,
) -> Finding | None:
    bins = reference.bins.get(name)
    present_rows = current.rows - current.missing
    only = _only_value(bins, current)
    if bins is None or not only or present_rows < MIN_COMPARED_ROWS:
        return None
    pieces = reference.pieces
    parts = (*pieces.windows, *(pieces.steps if len(pieces.windows) < _FEW_WINDOWS else ()))
    columns = [part.columns[name] for part in parts if name in part.columns]
    large = [
        column
        for column in columns
        if column.rows - column.missing >= min(present_rows / 2, MIN_COMPARED_ROWS)
    ]
    # the number of bins, except rare values
    single = bins.size if isinstance(bins, OrderedBins) else len(bins.codes)
    share = expected.counts[:single].max(initial=1) / max(expected.rows - expected.missing, 1)
    if (
        not large
        or share**present_rows >= _UNLIKELY
        or any(_only_value(bins, column) for column in large)
    ):
        return None
    reason = (
        f"all {present_rows:,} values are {only}; none of the reference's {len(pieces.windows)} "
        "windows has only one value"
    )
    return Finding(name, "constant", "drift", reason, 1.0, 0.0, change=f"constant {only}")


def _only_value(bins: Bins | None, column: ColumnSketch) -> str:
    """Return a column's only value as text; empty if the column has several values or
    none, or an unknown value.
    """
    if column.kind == "number":
        if column.minimum == column.maximum:
            return f"{column.minimum:g}"
        return ""
    places = column.counts[:-1].nonzero()[0]
    if not isinstance(bins, CategoryBins) or len(places) != 1:
        return ""
    if places[0] < len(bins.codes):
        return repr([*bins.codes][places[0]])
    if [*column.fresh.values()] == [column.rows - column.missing]:
        return repr(next(iter(column.fresh)))
    return ""


def _families(column: ColumnSketch) -> set[str]:
    """Return the Arrow types of a column's values, without widths, units, zones and
    element types.
    """
    return {re.split(r"[0-9\[<(]", part)[0] for part in column.arrow_types}


def judgeable_columns(
    reference: DriftReference,
    window: Profile,
    columns: Sequence[str],
    segment: str = "",
) -> tuple[tuple[str, ...], list[Finding]]:
    """Return the columns whose distributions can be judged, and a finding with the
    reason for each other column. The projections follow if `columns` is empty or
    contains them, and if all columns that they include can be judged.
    """
    names: list[str] = []
    reasons: dict[str, str] = {}
    for name in _column_names(reference, window, columns):
        expected = reference.pieces.total.columns.get(name)
        current = window.columns.get(name)
        if current is None or current.rows == 0:
            reasons[name] = "the window lacks the column"
        elif expected is None:
            reasons[name] = "the reference lacks the column"
        elif name not in reference.bins:
            reasons[name] = f"distributions of type {expected.arrow_type} are not judged"
        elif current.kind == "other":
            usual = expected.arrow_type or current.expected_type
            reasons[name] = f"the type is {current.arrow_type}; the reference has {usual}"
        else:
            names.append(name)
    relations = [
        name for name in PROJECTIONS if name in reference.bins and (not columns or name in columns)
    ]
    left_out = sorted(relation_tables(reference.bins).keys() - set(names))
    if relations and left_out:
        reasons[relations[0]] = f"the relations include {left_out[0]}, which cannot be judged"
    elif relations:
        names += relations
    return tuple(names), not_judged_findings(reasons, segment)


def not_judged_findings(reasons: Mapping[str, str], segment: str = "") -> list[Finding]:
    shown = {shown_name(name): reason for name, reason in reasons.items()}
    return [
        Finding(name, "distribution", "not judged", reason, segment=segment)
        for name, reason in shown.items()
    ]


def judge_columns(
    groups: Sequence[ColumnGroup],
    null: NullDistribution,
    window: Array,
    scores: Array,
    threshold: float,
    start_us: int,
    season_us: int,
) -> tuple[list[Finding], dict[str, float]]:
    """Return the findings and the metrics of all columns of all groups, by decreasing
    score. `window` has the figures of the judged window, [F, FIGURES]; `scores` are the
    figures in standard deviations above the null windows. The change of a distribution
    is described against the windows of the reference in the same phase of the season,
    if any. All projections of a group get one finding, for the largest score. It is an
    alarm only if no column of the group has an alarm, because a changed column also
    changes the projections.
    """
    usual, spread = (part * null.scales for part in null.mean_and_deviation())
    members = [(group, name) for group in groups for name in group.columns]
    findings: list[Finding] = []
    largest = scores.max(axis=1)
    # The projections are the last columns of a group.
    figures = {
        "share_of_drifted_columns": float(
            (largest[: len(groups[0].own_columns)] > threshold).mean(),
        ),
    }
    order = np.argsort(-largest, kind="stable").tolist()
    drifted = [
        members[index]
        for index in order
        if largest[index] > threshold and members[index][1] not in PROJECTIONS
    ]
    for index in order:
        group, name = members[index]
        subject = shown_name(name)
        is_relation = name in PROJECTIONS
        title = f"{group.segment}/{subject}" if group.segment else subject
        if (
            is_relation and f"drift_score/{title}" in figures
        ):  # A projection with a larger score has the finding.
            continue
        other_windows = group.reference.pieces.others
        seasonal = None
        phase = ""
        if largest[index] > threshold:
            seasonal, phase = _in_phase(group.reference.pieces, name, start_us, season_us)
        column = _JudgedColumn(
            bins=group.reference.bins[name],
            given=group.window.columns[name],
            before=seasonal or other_windows.columns.get(name),
            missing=_missing_share(group.window.columns[name], group.window.rows),
            missing_before=_missing_share(other_windows.columns.get(name), other_windows.rows),
        )
        figures[f"drift_score/{title}"] = float(largest[index])
        figures[f"drift_distance/{title}"] = float(window[index, DISTANCE])
        if not group.segment and not is_relation:
            figures |= {
                f"missing/{name}": column.missing,
                f"reference_missing/{name}": column.missing_before,
            }
        for figure, check in enumerate(CHECKS):
            score = float(scores[index, figure])
            is_seen = window[index, figure] > 0 or (figure == MISSING and column.missing_before)
            if (
                figure != DISTANCE and not is_seen
            ):  # Omit checks for values that do not occur, such as missing values.
                continue
            if not np.isfinite(score):
                reason = "too few of the reference's own windows have this figure"
                findings.append(
                    Finding(subject, check, "not judged", reason, segment=group.segment),
                )
                continue
            reason, change = column.describe(
                check,
                *(float(part[index, figure]) for part in (window, usual, spread)),
            )
            state: State = "drift" if score > threshold else "no drift"
            causes = [column_name for owner, column_name in drifted if owner is group]
            if is_relation and state == "drift" and causes:
                state = "no drift"
                reason = f"{reason}; the change of {causes[0]} also changes sums of columns"
            seen = change if state == "drift" else ""
            if phase and check == "distribution":
                seen = seen.replace(" → ", f" ({phase}) → ", 1)
            finding = Finding(subject, check, state, reason, score, threshold, group.segment, seen)
            findings.append(replace(finding, measure=column.measure(check), unit="SD"))
    return findings, figures


def _in_phase(
    pieces: ReferencePieces,
    name: str,
    start_us: int,
    season_us: int,
) -> tuple[ColumnSketch | None, str]:
    """Return the column in the reference's windows of the same phase, and their name;
    None without such windows.
    """
    indices, phase = same_phase(start_us, pieces.grid.length_us, pieces.window_starts_us, season_us)
    windows = [pieces.windows[index] for index in indices] if pieces.lagged is None else []
    parts = [
        Profile(window.rows, {name: window.columns[name]})
        for window in windows
        if name in window.columns
    ]
    if parts:
        return (merge(parts).columns[name], phase)
    return (None, "")


@dataclass(frozen=True, eq=False)
class _JudgedColumn:
    """A column in the window, and in the profile that the window is compared with
    (`before`).
    """

    bins: Bins
    given: ColumnSketch
    before: ColumnSketch | None
    missing: float
    missing_before: float

    def measure(self, check: Check) -> str:
        """Return the measure of a check, such as `Wasserstein distance`."""
        if check != "distribution":
            return _MEASURES[check]
        if not isinstance(self.bins, OrderedBins):
            return "Jensen–Shannon distance"
        if self.bins.tables:
            return "spread of a projection"
        return "Wasserstein distance"

    def describe(self, check: Check, value: float, usual: float, spread: float) -> tuple[str, str]:
        """Return the text about a check, in the units of the check, and the change of
        the column (empty if unknown). `usual` and `spread` are the mean and standard
        deviation of the reference's own windows.
        """
        current = self.given
        if check == "distribution":
            usual_text = f"{usual:.3g} ± {spread:.2g} in the reference's own windows"
            if isinstance(self.bins, OrderedBins) and self.bins.tables:
                return (
                    f"the spread of a projection of the rows differs by {value:.3g} deviations, "
                    f"{usual_text}",
                    "",
                )
            unit = " deviations" if isinstance(self.bins, OrderedBins) else ""
            return (
                f"{self.measure(check)} {value:.3g}{unit}, {usual_text}",
                self._distribution_change(value),
            )
        if check == "missing":
            first = self.missing_before
            now = self.missing
            change = f"missing {first:.1%} → {now:.1%}, {'more' if now > first else 'fewer'}"
            return f"{now:.1%} missing, {first:.1%} in the reference", change
        usual_text = f"{usual:.1%} ± {spread:.1%} in the reference's own windows"
        if check == "unseen":
            share = _share(current.unseen, current)
            listed = ", ".join(f"{value!r}" for value in list(current.unseen_values)[:_SHOWN])
            change = f"values that the reference lacks {usual:.1%} → {share}, more"
            return (
                f"{share} of rows have a value that the reference lacks ({listed}), {usual_text}",
                change,
            )
        ranges = f"{self.bins.minimum:g} to {self.bins.maximum:g}"
        share = _share(current.below + current.above, current)
        side = (
            "on both sides"
            if current.below and current.above
            else "above"
            if current.above
            else "below"
        )
        change = f"out of range {usual:.1%} → {share}, more {side}"
        return f"{share} of rows are outside of {ranges} ({side}), {usual_text}", change

    def _distribution_change(self, distance: float) -> str:
        """Return a text about the change of the distribution, such as `mean 3.2 → 8.9,
        higher`.
        """
        bins = self.bins
        current = self.given
        before = self.before
        if before is None or len(before.counts) != len(current.counts):
            return ""
        if isinstance(
            bins,
            OrderedBins,
        ):  # Return the first change that explains at least half of the distance.
            infinite = [before.infinite_share, current.infinite_share]
            # Infinite values are in an outer bin, at most this far away.
            reach = np.ptp(bins.positions) / bins.scale
            if abs(infinite[1] - infinite[0]) * reach >= distance / 2:
                return _share_change("infinite values", *infinite)
            if not (before.finite and current.finite):
                return ""
            means = f"mean {before.mean:.4g} → {current.mean:.4g}"
            if abs(current.mean - before.mean) >= distance * bins.scale / 2:
                return f"{means}, {'higher' if current.mean > before.mean else 'lower'}"
            wide = "wider" if current.deviation > before.deviation else "narrower"
            return f"{means}, deviation {before.deviation:.3g} → {current.deviation:.3g}, {wide}"
        shares = [
            column.counts[:-1] / max(int(column.counts[:-1].sum()), 1)
            for column in (before, current)
        ]
        divergence = bins.divergence(*shares)
        frequent = len(bins.codes)
        by_value = [np.append(share[:frequent], share[frequent:].sum()) for share in shares]
        index = int(np.argmax(np.abs(by_value[1] - by_value[0])))
        # Report an increase of rare or new values, not the decrease of a frequent value
        # that this increase causes.
        if index == frequent or 2 * divergence[frequent:].sum() > divergence.sum():
            return self._rare_change(bins, before, *(share[frequent:] for share in shares))
        code = list(bins.codes)[index]
        name = f"{code:g}" if isinstance(code, float) else repr(code)
        return _share_change(name, *(share[index] for share in by_value))

    def _rare_change(
        self,
        bins: CategoryBins,
        column: ColumnSketch,
        before: Array,
        now: Array,
    ) -> str:
        current, (value, rows) = self.given, next(iter(self.given.unseen_values.items()), ("", 0))
        present_rows = max(current.rows - current.missing, 1)
        if rows > 1 and 2 * rows / present_rows >= np.maximum(now - before, 0).sum():
            return _share_change(f"new value {value!r}", 0.0, rows / present_rows)
        cells = np.stack([before, now]).reshape(2, *bins.rare_shape)
        lengths = cells.sum(axis=2)
        parts = cells / np.maximum(cells.sum(axis=(1, 2), keepdims=True), 1e-9)
        if (
            len(bins.lengths)
            and 2 * bins.divergence(*parts.sum(axis=2)).sum() > bins.divergence(*parts).sum()
        ):
            index = int(np.argmax(parts[1].sum(axis=1) - parts[0].sum(axis=1)))
            low = [0, *bins.lengths][index]
            high = [*(bins.lengths - 1), None][index]
            size = (
                f"{low} or more"
                if high is None
                else f"{low}"
                if low == high
                else f"{low} to {high}"
            )
            return _share_change(f"texts of {size} characters", *lengths[:, index])
        if 2 * current.unseen > present_rows * now.sum():
            return _share_change(
                f"new values such as {value!r}",
                column.unseen / max(column.rows, 1),
                current.unseen / present_rows,
            )
        index = int(np.argmax(now - before))
        if now[index] - before[index] > abs(now.sum() - before.sum()):
            return _share_change("some of the rarer values", before[index], now[index])
        return _share_change("rarer values", before.sum(), now.sum())


def _missing_share(column: ColumnSketch | None, rows: int) -> float:
    """Return the share of missing values. The value of a row without the column counts
    as missing.
    """
    present_rows = column.rows - column.missing if column else 0
    return (rows - present_rows) / max(rows, 1)


def _share_change(name: str, first: float, now: float) -> str:
    where = "more often" if now > first else "less often"
    return f"{name} {first:.1%} → {now:.1%}, {where}"


def _share(rows: int, column: ColumnSketch) -> str:
    return f"{rows / max(column.rows, 1):.1%}"


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings: alarms, then other judged findings, then unjudged findings, each
    by decreasing value.
    """

    def sort_key(finding: Finding) -> tuple[int, float, str, str]:
        order = 0 if finding.is_alarm else 2 if finding.state == "not judged" else 1
        exact = finding.check in EXACT
        value = float("inf") if exact and finding.is_alarm else (finding.value or 0.0)
        return order, -value, finding.segment, finding.subject

    return tuple(sorted(findings, key=sort_key))


def describe_worst(subjects: Sequence[str], reason: str) -> str:
    worst, *rest = dict.fromkeys(subjects)
    more = f" and {len(rest) - _SHOWN + 1} more" if len(rest) > _SHOWN - 1 else ""
    also = f"; also {', '.join(rest[: _SHOWN - 1])}{more}" if rest else ""
    return f"{worst}: {reason}{also}"
