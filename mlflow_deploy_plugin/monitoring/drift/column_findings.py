"""The findings of each column: checks that need no threshold, and the sentences of those that have one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mlflow_deploy_plugin.monitoring.drift.references import DriftReference
from mlflow_deploy_plugin.monitoring.drift.sketches.bins import Bins, OrderedBins
from mlflow_deploy_plugin.monitoring.drift.sketches.sketch import ColumnSketch, Profile
from mlflow_deploy_plugin.monitoring.drift.threshold.distribution import NullDistribution
from mlflow_deploy_plugin.monitoring.drift.threshold.null import DISTANCE, MISSING, ColumnGroup
from mlflow_deploy_plugin.monitoring.result import Check, Finding, State
from mlflow_deploy_plugin.runtime import Array

CHECKS: tuple[Check, Check, Check, Check] = ("distribution", "missing", "unseen", "range")
"""The checks of the figures in `threshold/null.py`, in their order."""
_SHOWN = 3
_DISTANCES = {"int", "uint", "halffloat", "float", "double", "decimal", "bool", "string", "large_string", "dictionary"}
"""Types whose columns have a distance; without bins they are none that is asked for."""


@dataclass(frozen=True)
class ColumnVerdict:
    """One column.

    Attributes:
        score: standard deviations above the reference's own windows, the largest of its figures.
        distance: Wasserstein distance in reference deviations (number) or Jensen–Shannon distance (category).
        missing / reference_missing: shares of missing values.
        is_drifted: `score` is above the verdict's threshold.
        segment: as `carrier=AA`; empty: all rows.
    """

    name: str
    score: float
    distance: float
    missing: float
    reference_missing: float
    is_drifted: bool
    segment: str = ""


def schema_findings(reference: DriftReference, window: Profile, columns: Sequence[str]) -> list[Finding]:
    """Return a finding for each column that is new, gone or of another type.

    They are exact: none of the reference's own windows has such a column, so that they raise no false alarm as long as
    the reference is like the window. If a window of the reference lacks the column, too, that is no drift.

    Args:
        columns: only these are judged; empty: all.
    """
    found = (_schema_finding(name, reference, window) for name in _column_names(reference, window, columns))
    return [finding for finding in found if finding is not None]


def _column_names(reference: DriftReference, window: Profile, columns: Sequence[str]) -> list[str]:
    """Return the columns of either side, or those of them that are to be judged."""
    names = sorted({*reference.bins, *reference.pieces.total.columns, *window.columns})
    return [name for name in names if not columns or name in columns]


def _schema_finding(name: str, reference: DriftReference, window: Profile) -> Finding | None:
    expected, given = reference.pieces.total.columns.get(name), window.columns.get(name)

    def drift(check: Check, reason: str, change: str, value: float = 1.0) -> Finding:
        return Finding(name, check, "drift", reason, value, 0.0, change=change)

    if given is None or given.rows == 0:
        some = sum(name not in own.columns for own in reference.pieces.windows)
        if some:
            reason = f"the window lacks it, as {some} of the reference's {len(reference.pieces.windows)} windows do"
            return Finding(name, "presence", "no drift", reason)
        return drift("presence", "in the reference, not in the window", "gone")
    if expected is None:
        return drift("presence", f"in the window ({given.arrow_type}), not in the reference", "new")
    if given.mistyped and not expected.mistyped:
        known, usual = given.rows - given.missing, _type(expected, given)
        reason = f"{given.mistyped:,} of {known:,} values are {given.arrow_type}, in the reference {usual}"
        return drift("type", reason, f"{usual} → {given.arrow_type}", given.mistyped / max(known, 1))
    # what has no distribution (times, binary values) still has a type
    is_judged = name in reference.bins or _families(expected) & _DISTANCES
    if not is_judged and given.missing < given.rows and _families(expected).isdisjoint(_families(given)):
        reason = f"its values are {given.arrow_type}, in the reference {expected.arrow_type}"
        return drift("type", reason, f"{expected.arrow_type} → {given.arrow_type}")
    return None


def _families(column: ColumnSketch) -> set[str]:
    """Return Arrow's types without widths, units, zones, and what lists and structures are made of."""
    return {re.split(r"[0-9\[<(]", one)[0] for one in column.arrow_type.split(" | ")}


def _type(expected: ColumnSketch, given: ColumnSketch) -> str:
    return expected.arrow_type or given.expected_type


def judgeable_columns(
    reference: DriftReference, window: Profile, columns: Sequence[str], segment: str = ""
) -> tuple[tuple[str, ...], list[Finding]]:
    """Return the columns whose distribution can be judged, and for each other one a finding with the reason."""
    kept: list[str] = []
    reasons: dict[str, str] = {}
    for name in _column_names(reference, window, columns):
        expected, given = reference.pieces.total.columns.get(name), window.columns.get(name)
        if given is None or given.rows == 0:
            reasons[name] = "the window lacks the column"
        elif expected is None:
            reasons[name] = "the reference lacks the column"
        elif name not in reference.bins:
            reasons[name] = f"a column of type {expected.arrow_type} has no distribution that is judged"
        elif given.kind == "other":
            reasons[name] = f"its values are {given.arrow_type}, in the reference {_type(expected, given)}"
        else:
            kept.append(name)
    return tuple(kept), not_judged_findings(reasons, segment)


def not_judged_findings(reasons: Mapping[str, str], segment: str = "") -> list[Finding]:
    """Return a finding for every column, with the reason why its distribution is not judged."""
    return [Finding(name, "distribution", "not judged", reason, segment=segment) for name, reason in reasons.items()]


def judge_columns(
    groups: Sequence[ColumnGroup], null: NullDistribution, window: Array, scores: Array, threshold: float
) -> tuple[list[ColumnVerdict], list[Finding]]:
    """Return the verdict on every column of every group, and the findings of its checks.

    Args:
        window: [F, FIGURES] the window's own figures.
        scores: [F, FIGURES] the same in deviations above the reference's own windows; threshold: of all of them.
    """
    usual, spread = (part * null.scales for part in null.mean_and_deviation())
    members = [(group, name) for group in groups for name in group.columns]
    verdicts: list[ColumnVerdict] = []
    findings: list[Finding] = []
    for place, (group, name) in enumerate(members):
        others = group.reference.pieces.others
        column = _JudgedColumn(
            bins=group.reference.bins[name],
            given=group.window.columns[name],
            expected=group.reference.pieces.total.columns[name],
            before=others.columns.get(name),
            missing=_missing_share(group.window.columns[name], group.window.rows),
            missing_before=_missing_share(others.columns.get(name), others.rows),
        )
        score, distance = float(scores[place].max()), float(window[place, DISTANCE])
        is_drifted = score > threshold
        verdicts.append(
            ColumnVerdict(name, score, distance, column.missing, column.missing_before, is_drifted, group.segment)
        )
        for figure, check in enumerate(CHECKS):
            own = float(scores[place, figure])
            is_seen = window[place, figure] > 0 or (figure == MISSING and column.missing_before)
            if figure != DISTANCE and not is_seen:  # a check that saw nothing is no finding
                continue
            if not np.isfinite(own):
                reason = "too few of the reference's own windows say how large it may be"
                findings.append(Finding(name, check, "not judged", reason, segment=group.segment))
                continue
            figures = (float(part[place, figure]) for part in (window, usual, spread))
            reason, change = column.describe(check, *figures)
            state: State = "drift" if own > threshold else "no drift"
            change = change if state == "drift" else ""
            findings.append(Finding(name, check, state, reason, own, threshold, group.segment, change))
    return verdicts, findings


@dataclass(frozen=True, eq=False)
class _JudgedColumn:
    """One column of the window.

    Attributes:
        given: the column of the window; expected: of the whole reference; before: of what the window is compared with.
        missing, missing_before: shares of missing values in the window, and in what it is compared with.
    """

    bins: Bins
    given: ColumnSketch
    expected: ColumnSketch
    before: ColumnSketch | None
    missing: float
    missing_before: float

    def describe(self, check: Check, value: float, usual: float, spread: float) -> tuple[str, str]:
        """Return what the check saw, in its own units, and how the column changed; empty if it cannot be said.

        Args:
            value: the window's figure; usual, spread: the mean and the deviation of the reference's own windows.
        """
        given = self.given
        if check == "distribution":
            is_ordered = isinstance(self.bins, OrderedBins)
            name, unit = ("Wasserstein", " deviations") if is_ordered else ("Jensen–Shannon", "")
            beside = f"{usual:.3g} ± {spread:.2g} in the reference's own windows"
            return f"{name} distance {value:.3g}{unit}, {beside}", self._distribution_change(value)
        if check == "missing":
            first, now = self.missing_before, self.missing
            change = f"missing {first:.1%} → {now:.1%}, {'more' if now > first else 'fewer'}"
            return f"{now:.1%} missing, {first:.1%} in the reference", change
        beside = f"{usual:.1%} ± {spread:.1%} in the reference's own windows"
        if check == "unseen":
            share = _share(given.unseen, given)
            shown = ", ".join(f"{value!r}" for value in list(given.unseen_values)[:_SHOWN])
            change = f"values that the reference lacks {usual:.1%} → {share}, more"
            return f"{share} of rows have a value that the reference lacks ({shown}), {beside}", change
        ranges = f"{self.expected.minimum:g} to {self.expected.maximum:g}"
        share = _share(given.below + given.above, given)
        side = "on both sides" if given.below and given.above else "above" if given.above else "below"
        change = f"out of range {usual:.1%} → {share}, {side}"
        return f"{share} of rows are outside of {ranges} ({side}), {beside}", change

    def _distribution_change(self, distance: float) -> str:
        """Return how the distribution changed, as `mean 3.2 → 8.9, higher`."""
        given, before = self.given, self.before
        if before is None or len(before.counts) != len(given.counts):
            return ""
        if isinstance(self.bins, OrderedBins):
            if not (before.finite and given.finite):
                return ""
            means = f"mean {before.mean:.4g} → {given.mean:.4g}"
            if abs(given.mean - before.mean) >= distance * self.bins.scale / 2:  # it explains half of the distance
                return f"{means}, {'higher' if given.mean > before.mean else 'lower'}"
            wide = "wider" if given.deviation > before.deviation else "narrower"
            return f"{means}, deviation {before.deviation:.3g} → {given.deviation:.3g}, {wide}"
        shares = [column.counts[:-1] / max(int(column.counts[:-1].sum()), 1) for column in (before, given)]
        divergence = self.bins.divergence(*shares)
        is_rest = 2 * divergence[-1] > divergence.sum()  # a few new values tell more than many fewer of a frequent one
        place = len(divergence) - 1 if is_rest else int(np.argmax(np.abs(shares[1] - shares[0])))
        first, now = (float(share[place]) for share in shares)
        names = [f"{code:g}" if isinstance(code, float) else repr(code) for code in self.bins.codes]
        is_new = 2 * given.unseen > given.counts[-2]  # what is rare in the reference, too, is in the same bin
        rest = f"new values as {next(iter(given.unseen_values))!r}" if is_new else "rarer values"
        name = names[place] if place < len(names) else rest
        return f"{name} {first:.1%} → {now:.1%}, {'more often' if now > first else 'less often'}"


def _missing_share(column: ColumnSketch | None, rows: int) -> float:
    """Return the share of missing values. Rows that lack the column count as missing."""
    known = column.rows - column.missing if column else 0
    return (rows - known) / max(rows, 1)


def _share(part: int, column: ColumnSketch) -> str:
    return f"{part / max(column.rows, 1):.1%}"


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return alarms first, each sort by falling value; then what was judged, then what was not."""

    def place(finding: Finding) -> tuple[int, float, str, str]:
        order = 0 if finding.is_alarm else 2 if finding.state == "not judged" else 1
        exact = finding.check in ("presence", "type")
        value = float("inf") if exact and finding.is_alarm else (finding.value or 0.0)
        return order, -value, finding.segment, finding.subject

    return tuple(sorted(findings, key=place))


def describe_worst(subjects: Sequence[str], reason: str) -> str:
    """Return the reason of the worst subject, followed by the names of others."""
    worst, *others = dict.fromkeys(subjects)
    more = f" and {len(others) - _SHOWN + 1} more" if len(others) > _SHOWN - 1 else ""
    also = f"; also {', '.join(others[: _SHOWN - 1])}{more}" if others else ""
    return f"{worst}: {reason}{also}"
