"""The findings about each column: the checks that need no threshold, and the texts for
all checks.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mlflow_deploy_plugin.serve.inference_log.windows import HOUR_US
from mlflow_deploy_plugin.serve.runtime.feeds import Array
from mlflow_deploy_plugin.watch.drift.references.rows import event_times
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.bins import Bins, CategoryBins, OrderedBins
from mlflow_deploy_plugin.watch.drift.sketches.relations import (
    PROJECTIONS,
    relation_tables,
    shown_name,
    without_projections,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import (
    ColumnSketch,
    Profile,
    column_counts,
    merge,
    sketch_by,
)
from mlflow_deploy_plugin.watch.result import EXACT, Check, Finding, format_number, same_phase
from mlflow_deploy_plugin.watch.sequential.evidence import alarm_key
from mlflow_deploy_plugin.watch.sequential.figures import (
    FigureTest,
    describe_figure,
    shown_deviation,
    shown_figure,
)
from mlflow_deploy_plugin.watch.sequential.levels import MEAN, MODE, QUALITY, ROWS

MIN_COMPARED_ROWS = 30
_OF_SINGLE_NUMBERS = (MEAN, MODE, "frequent", "second")
_SHOWN = 3
_UNLIKELY = 1e-6
"""The probability, given the frequencies of values in the reference, below which a
constant column is drift.
"""
_FEW_WINDOWS = 19
"""The number of reference windows below which shorter stretches are also checked for
constant values. Without this check, a flag that changes every other week was called
drifted in 10 % of the months after a reference of three months.
"""
_STRETCHES = 24
"""The maximum number of stretches of a window. Each has at least an hour."""
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


def _column_names(
    reference: DriftReference,
    window: Profile,
    columns: Sequence[str],
) -> list[str]:
    """Return the names of the `columns`, by default of all columns, in the reference
    or the window, without projections.
    """
    names = sorted(
        {
            *reference.bins,
            *reference.pieces.total.columns,
            *window.columns,
        }
    )
    return [name for name in names if name not in PROJECTIONS and (not columns or name in columns)]


def _schema_finding(name: str, reference: DriftReference, window: Profile) -> Finding | None:
    """Return the finding about a column that is missing in the window or in the
    reference, has another type, or is constant; None for any other column.
    """
    expected = reference.pieces.total.columns.get(name)
    current = window.columns.get(name)
    if current is None or current.rows == 0:
        lacking = sum(name not in piece.columns for piece in reference.pieces.windows)
        if lacking:
            reason = (
                f"the column is missing, as in {lacking} of the reference's "
                f"{len(reference.pieces.windows)} windows"
            )
            return Finding(name, "presence", "no drift", reason)
        reason = "the column is in the reference, but not in the window"
        return _schema_alarm(name, "presence", reason, "gone")
    if expected is None:
        reason = f"the column is in the window ({current.arrow_type}), but not in the reference"
        return _schema_alarm(name, "presence", reason, "new")
    if current.mistyped and not expected.mistyped:
        present_rows = current.rows - current.missing
        usual = expected.arrow_type or current.expected_type
        reason = (
            f"{current.mistyped:,} of {present_rows:,} values have type {current.arrow_type}; the "
            f"reference has {usual}"
        )
        change = f"{usual} → {current.arrow_type}"
        share = current.mistyped / max(present_rows, 1)
        return _schema_alarm(name, "type", reason, change, share)
    # Check columns without a judged distribution (times, binary values) for a change of
    # type.
    is_judged = name in reference.bins or _families(expected) & _DISTANCES
    has_values = current.missing < current.rows
    if not is_judged and has_values and _families(expected).isdisjoint(_families(current)):
        reason = f"the type is {current.arrow_type}; the reference has {expected.arrow_type}"
        change = f"{expected.arrow_type} → {current.arrow_type}"
        return _schema_alarm(name, "type", reason, change)
    return _constant_finding(name, reference, expected, current)


def _schema_alarm(
    name: str,
    check: Check,
    reason: str,
    change: str,
    value: float = 1.0,
) -> Finding:
    """Return the alarm of an exact check, for which any value above 0 is an alarm."""
    return Finding(name, check, "drift", reason, value, threshold=0.0, change=change)


def _constant_finding(
    name: str,
    reference: DriftReference,
    expected: ColumnSketch,
    current: ColumnSketch,
) -> Finding | None:
    """Return the alarm if the column has a single value, which is unlikely by the
    reference and occurs in none of its windows; otherwise None.
    """
    bins = reference.bins.get(name)
    present_rows = current.rows - current.missing
    only_value = _only_value(bins, current)
    if bins is None or not only_value or present_rows < MIN_COMPARED_ROWS:
        return None
    # the number of bins, except rare values
    bin_count = bins.size if isinstance(bins, OrderedBins) else len(bins.codes)
    share = expected.counts[:bin_count].max(initial=1) / max(expected.rows - expected.missing, 1)
    if share**present_rows >= _UNLIKELY:
        return None
    fewest = min(present_rows / 2, MIN_COMPARED_ROWS)
    parts = reference.pieces.windows
    if len(parts) < _FEW_WINDOWS:
        parts += _stretches(name, reference)
    columns = []
    for part in parts:
        column = part.columns.get(name)
        if column is not None and column.rows - column.missing >= fewest:
            columns.append(column)
    if not columns or any(_only_value(bins, column) for column in columns):
        return None
    reason = (
        f"all {present_rows:,} values are {only_value}; none of the reference's "
        f"{len(reference.pieces.windows)} windows has only one value"
    )
    return _schema_alarm(name, "constant", reason, f"constant {only_value}")


def _stretches(name: str, reference: DriftReference) -> tuple[Profile, ...]:
    """Return the column in equal parts of the windows, counted in the sample of the
    reference; empty if the windows are too short, or are compared with earlier ones.
    """
    grid = reference.pieces.grid
    times = event_times(reference.sample)
    lengths = (
        grid.length_us // count
        for count in range(_STRETCHES, 1, -1)
        if grid.length_us % (count * 1_000_000) == 0
    )
    length_us = next((length for length in lengths if length >= HOUR_US), 0)
    if times is None or not length_us or grid.lag_windows:
        return ()
    numbers = (times - grid.start_us) // length_us
    parts = sketch_by({name: reference.bins[name]}, reference.sample, numbers)
    return tuple(profile for _, profile in parts)


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
    segment: str,
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


def not_judged_findings(
    reasons: Mapping[str, str],
    segment: str = "",
) -> list[Finding]:
    """Return a finding for each column that cannot be judged, with its reason.

    The projections of a tensor have one shown name, and therefore one finding.
    """
    reason_by_shown_name = {shown_name(name): reason for name, reason in reasons.items()}
    return [
        Finding(name, "distribution", "not judged", reason, segment=segment)
        for name, reason in reason_by_shown_name.items()
    ]


@dataclass(frozen=True, eq=False)
class ColumnGroup:
    """All rows (empty `segment`) or one segment, and the columns that are judged.

    Attributes:
        unjudged: the findings about the other columns.
        reason: the reason why no column is judged; empty if some columns are.
    """

    segment: str
    reference: DriftReference
    window: Profile
    columns: tuple[str, ...]
    unjudged: Sequence[Finding]
    reason: str = ""

    @property
    def figures(self) -> dict[str, float]:
        return {
            "rows": float(self.window.rows),
            "reference_rows": float(self.reference.pieces.total.rows),
        }


ColumnTests = Mapping[tuple[str, str], Sequence[FigureTest]]
"""The tests of each column, by segment and column."""


def judge_columns(
    groups: Sequence[ColumnGroup],
    tests: ColumnTests,
    start_us: int,
    season_us: int,
) -> tuple[list[Finding], dict[str, float]]:
    """Return the findings and the metrics of all columns of all groups, the largest
    score relative to its threshold first. The change of a distribution is described
    against the windows of the reference in the same phase of the season, if any. All
    projections of a group get one finding, for the largest score. It is an alarm only
    if no column of the group has an alarm, because a changed column also changes the
    projections.
    """
    scored = [
        _ScoredColumn(group, name, tests.get((group.segment, name), ()))
        for group in groups
        for name in group.columns
    ]
    columns: dict[tuple[str, str | bool], _ScoredColumn] = {}
    for column in sorted(scored, key=lambda column: -column.ratio):
        columns.setdefault((column.group.segment, column.is_relation or column.name), column)
    drifted = [
        column for column in columns.values() if column.is_drifted and not column.is_relation
    ]
    causes = {column.group.segment: column.name for column in reversed(drifted)}
    share: float = sum(not column.group.segment for column in drifted)
    share /= max(len([*without_projections(groups[0].columns)]), 1)
    figures = {"share_of_drifted_columns": share}
    findings: list[Finding] = []
    for column in columns.values():
        comparison = column.comparison(start_us, season_us)
        figures |= column.metrics(comparison)
        for finding in column.findings(comparison):
            if column.is_relation and finding.state == "drift" and column.group.segment in causes:
                finding = replace(
                    finding,
                    state="no drift",
                    reason=f"{finding.reason}; the change of {causes[column.group.segment]} also "
                    "changes sums of columns",
                    change="",
                )
            findings.append(finding)
    return [*findings, *rows_findings(tests)], figures


def rows_findings(tests: ColumnTests) -> Iterator[Finding]:
    """Yield the findings about the number of rows, of all rows and of segments."""
    for (segment, column), checks in tests.items():
        if column != ROWS:
            continue
        (test,) = checks
        yield Finding(
            subject=ROWS,
            check="rows",
            state="drift" if test.is_drifted else "no drift",
            reason=_compare_with_usual(test),
            value=test.score,
            threshold=test.threshold,
            segment=segment,
            change=_figure_change(test) if test.is_drifted else "",
            measure=test.name.text,
            unit="SD",
        )


def _compare_with_usual(test: FigureTest) -> str:
    """Return the figure and what is usual, such as `mean 8.9, 3.2 ± 0.4 is usual`."""
    if test.is_change:
        usual = f"{test.usual:+.3g} ± {test.deviation:.2g} is usual"
        return f"change of the {test.name.text} {test.value:+.3g}, {usual}"
    value = shown_figure(test.series.figure, test.value)
    usual = shown_figure(test.series.figure, test.usual)
    spread = shown_deviation(test.series.figure, test.usual, test.deviation)
    return f"{test.name.text} {value}, {usual} ± {spread} is usual"


def _figure_change(test: FigureTest) -> str:
    return describe_figure(test.series.figure, test.name, test.usual, test.value)


@dataclass(frozen=True, eq=False)
class _ScoredColumn:
    """A judged column of a group, with the tests of its checks."""

    group: ColumnGroup
    name: str
    tests: Sequence[FigureTest]

    @property
    def ratio(self) -> float:
        return max((test.ratio for test in self.tests), default=0.0)

    @property
    def is_drifted(self) -> bool:
        return any(test.is_drifted for test in self.tests)

    @property
    def is_relation(self) -> bool:
        return self.name in PROJECTIONS

    def comparison(self, start_us: int, season_us: int) -> "_Comparison":
        """Return the column in the window and in the reference. Only an alarm is
        compared with the windows in the same phase of the season.
        """
        pieces = self.group.reference.pieces
        current = self.group.window.columns[self.name]
        others = pieces.others.columns.get(self.name)
        before = others
        phase = ""
        if self.is_drifted and pieces.lagged is None:
            indices, name_of_phase = same_phase(
                start_us, pieces.grid.length_us, pieces.window_starts_us, season_us
            )
            parts = [pieces.windows[index] for index in indices]
            parts = [
                Profile(part.rows, {self.name: part.columns[self.name]})
                for part in parts
                if self.name in part.columns
            ]
            if parts:
                before = merge(parts).columns[self.name]
                phase = name_of_phase
        bins = self.group.reference.bins[self.name]
        counts = column_counts([self.group.window, pieces.others], self.name, bins)
        return _Comparison(
            bins=bins,
            current=current,
            before=before,
            phase=phase,
            missing=_missing_share(current, self.group.window.rows),
            missing_before=_missing_share(others, pieces.others.rows),
            distance=float(bins.distance(counts[:1, :-1], counts[1, :-1])[0]),
        )

    def metrics(self, comparison: "_Comparison") -> dict[str, float]:
        """Return the score and the distance, and for a column of all rows the shares of
        missing values.
        """
        title = alarm_key(shown_name(self.name), self.group.segment)
        metrics = {
            f"drift_score/{title}": max((test.score for test in self.tests), default=0.0),
            f"drift_distance/{title}": comparison.distance,
        }
        if not self.group.segment and not self.is_relation:
            metrics[f"missing/{self.name}"] = comparison.missing
            metrics[f"reference_missing/{self.name}"] = comparison.missing_before
        return metrics

    def findings(self, comparison: "_Comparison") -> Iterator[Finding]:
        """Yield a finding for each check, except checks for values that do not occur,
        such as missing values.
        """
        subject = shown_name(self.name)
        segment = self.group.segment
        if "distribution" not in [test.check for test in self.tests]:
            reason = "too few of the reference's own windows have this figure"
            yield Finding(subject, "distribution", "not judged", reason, segment=segment)
        for test in self.tests:
            is_seen = test.value > 0 or (test.check == "missing" and comparison.missing_before)
            if test.check != "distribution" and not is_seen:
                continue
            change = ""
            if test.is_drifted:
                # The change of the distribution if it is known and explains the figure,
                # otherwise of the figure.
                needs_distribution = test.is_change or self.is_relation
                if needs_distribution or comparison.explains(test.series.figure):
                    change = comparison.change(test.check, test.usual)
                if not change and not needs_distribution:
                    change = _figure_change(test)
            yield Finding(
                subject=subject,
                check=test.check,
                state="drift" if test.is_drifted else "no drift",
                reason=comparison.reason(test),
                value=test.score,
                threshold=test.threshold,
                segment=segment,
                change=change,
                measure=test.name.text,
                unit="SD",
                is_quality=test.value > QUALITY.get(test.series.figure, test.value),
            )


_Change = tuple[str, str]
"""The change of a column: a text for the reference, such as `mean 3.2`, and for the
window, such as `8.9, higher`.
"""


@dataclass(frozen=True, eq=False)
class _Comparison:
    """A column in the window, and in the profile that the window is compared with.

    Attributes:
        current: the column in the window.
        before: the column in the reference; None if the reference lacks the column.
        phase: the name of the reference's windows in `before`, such as `Mondays`; empty
            for all windows.
        missing, missing_before: the shares of missing values.
        distance: of the distributions (`bins.py`).
    """

    bins: Bins
    current: ColumnSketch
    before: ColumnSketch | None
    phase: str
    missing: float
    missing_before: float
    distance: float

    @property
    def side(self) -> str:
        """The side of the reference's range on which values are out of range."""
        if self.current.below and self.current.above:
            return "on both sides"
        if self.current.above:
            return "above"
        return "below"

    def explains(self, figure: str) -> bool:
        """Return True if the change of the distribution explains the figure. A mean and
        a deviation do not explain the shares of single numbers.
        """
        return not isinstance(self.bins, OrderedBins) or figure not in _OF_SINGLE_NUMBERS

    def reason(self, test: FigureTest) -> str:
        """Return the text about a check, in the units of the check."""
        if test.check == "missing":
            return f"{self.missing:.1%} missing, {self.missing_before:.1%} in the reference"
        if test.check == "distribution":
            return _compare_with_usual(test)
        current = self.current
        usual = f"{test.usual:.1%} ± {test.deviation:.1%} is usual"
        if test.check == "unseen":
            share = _share(current.unseen, current)
            listed = ", ".join(f"{value!r}" for value in list(current.unseen_values)[:_SHOWN])
            return f"{share} of rows have a value that the reference lacks ({listed}), {usual}"
        ranges = f"{self.bins.minimum:g} to {self.bins.maximum:g}"
        share = _share(current.below + current.above, current)
        return f"{share} of rows are outside of {ranges} ({self.side}), {usual}"

    def change(self, check: Check, usual: float) -> str:
        """Return the change of the column; empty if unknown. `usual` is the mean of the
        check's figure in the reference's own windows.
        """
        current = self.current
        if check == "distribution":
            change = self._distribution_change()
            if change is None:
                return ""
            before, now = change
            if self.phase:
                before += f" ({self.phase})"
            return f"{before} → {now}"
        if check == "missing":
            where = "more" if self.missing > self.missing_before else "fewer"
            return f"missing {self.missing_before:.1%} → {self.missing:.1%}, {where}"
        if check == "unseen":
            share = _share(current.unseen, current)
            return f"values that the reference lacks {usual:.1%} → {share}, more"
        share = _share(current.below + current.above, current)
        return f"out of range {usual:.1%} → {share}, more {self.side}"

    def _distribution_change(self) -> _Change | None:
        """Return the change of the distribution, such as `mean 3.2 → 8.9, higher`. Of
        numbers, it is the first change that explains at least half of the distance: of
        the infinite values, the mean, or the mean and the deviation. Return None if the
        reference lacks the column or has other bins, or if a side has no finite values.
        """
        bins = self.bins
        before = self.before
        current = self.current
        is_projection = isinstance(bins, OrderedBins) and bins.tables
        if before is None or is_projection or len(before.counts) != len(current.counts):
            return None
        if isinstance(bins, CategoryBins):
            return self._category_change(bins, before)
        infinite = [before.infinite_share, current.infinite_share]
        # Infinite values are in an outer bin, at most this far away.
        reach = np.ptp(bins.positions) / bins.scale
        if abs(infinite[1] - infinite[0]) * reach >= self.distance / 2:
            return _share_change("infinite values", *infinite)
        if not (before.finite and current.finite):
            return None
        first = f"mean {format_number(before.mean)}"
        mean = format_number(current.mean)
        if abs(current.mean - before.mean) >= self.distance * bins.scale / 2:
            direction = "higher" if current.mean > before.mean else "lower"
            return first, f"{mean}, {direction}"
        direction = "wider" if current.deviation > before.deviation else "narrower"
        deviations = [format_number(each.deviation, digits=3) for each in (before, current)]
        return first, f"{mean}, deviation {' → '.join(deviations)}, {direction}"

    def _category_change(self, bins: CategoryBins, before: ColumnSketch) -> _Change:
        """Return the change of the share of the frequent value, or of the rare values,
        that changed most.
        """
        counts = [column.counts[:-1] for column in (before, self.current)]
        shares = [each / max(int(each.sum()), 1) for each in counts]
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
    ) -> _Change:
        """Return the change of the rare values: of a new value, of the texts of a
        length, of all new values, or of all rare values, the first that explains
        enough. `before` and `now` are the shares of the bins of rare values.
        """
        current = self.current
        value, rows = next(
            iter(current.unseen_values.items()),
            ("", 0),
        )
        present_rows = max(current.rows - current.missing, 1)
        if rows > 1 and 2 * rows / present_rows >= np.maximum(now - before, 0).sum():
            return _share_change(f"new value {value!r}", 0.0, rows / present_rows)
        cells = np.stack([before, now]).reshape(2, *bins.rare_shape)
        lengths = cells.sum(axis=2)
        parts = cells / np.maximum(
            cells.sum(axis=(1, 2), keepdims=True),
            1e-9,
        )
        of_lengths = bins.divergence(*parts.sum(axis=2)).sum()
        if len(bins.lengths) and 2 * of_lengths > bins.divergence(*parts).sum():
            index = int(np.argmax(parts[1].sum(axis=1) - parts[0].sum(axis=1)))
            low = [0, *bins.lengths][index]
            high = [*(bins.lengths - 1), None][index]
            if high is None:
                size = f"{low} or more"
            elif low == high:
                size = f"{low}"
            else:
                size = f"{low} to {high}"
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


def _share_change(name: str, first: float, now: float) -> _Change:
    """Return the change of the share of rows that have the named values."""
    direction = "more often" if now > first else "less often"
    return f"{name} {first:.1%}", f"{now:.1%}, {direction}"


def _share(rows: int, column: ColumnSketch) -> str:
    return f"{rows / max(column.rows, 1):.1%}"


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Sort findings: alarms, then other judged findings, then unjudged findings, each
    by decreasing value.
    """

    def sort_key(finding: Finding) -> tuple[int, float, str, str]:
        order = 2 if finding.state == "not judged" else 1
        value = finding.value or 0.0
        if finding.is_alarm:
            order = 0
            value = float("inf") if finding.check in EXACT else value
        return order, -value, finding.segment, finding.subject

    return tuple(sorted(findings, key=sort_key))
