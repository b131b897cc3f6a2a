"""The verdict: does this window differ from the reference more than the reference's own
windows do?

1. The null (`threshold/null.py`) chooses null windows from the reference: contiguous
   windows if there are enough.
2. Each column has up to four figures: the distance of its known values, the change of
   its missing share, and the shares of unseen categories and out-of-range numbers. Both
   sides of a comparison have the same number of rows.
3. The figures of the judged window and of each of M null windows are standardised by
   the mean and standard deviation of all other windows. The statistic of a window is
   its largest standardised figure over all columns and segments.
4. p = (1 + #{windows with a statistic >= the judged window's}) / (M + 1), times 1.5 for
   the bootstrap. The result is drift if p <= the false-alarm rate. All columns have one
   threshold: the statistic at the corresponding rank.

If the window is exchangeable with the reference's own windows, the false-alarm rate is
at most the specified rate (conformal p-value: Vovk, Gammerman, Shafer, Algorithmic
Learning in a Random World, 2005). The actual rate is measured in
`threshold/distribution.py`. Ranks, logarithms and robust scales lose power if there are
many columns (`benchmarks/drift.py`). A removed, new, retyped or constant column is
drift without a test (`column_findings.py`).
"""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from mlflow_deploy_plugin.core.errors import Refused
from mlflow_deploy_plugin.core.spec.monitors import MonitorSpec
from mlflow_deploy_plugin.core.spec.types import (
    SMALLEST_ROLLING_RATE,
    duration_seconds,
    duration_text,
)
from mlflow_deploy_plugin.core.statedir.files import FileCache
from mlflow_deploy_plugin.watch.drift import column_findings
from mlflow_deploy_plugin.watch.drift.references.windows import (
    MAX_WINDOWS,
    DriftReference,
    ReferencePieces,
    WindowGrid,
)
from mlflow_deploy_plugin.watch.drift.sketches.relations import (
    PROJECTIONS,
    shown_name,
    without_projections,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import Profile
from mlflow_deploy_plugin.watch.drift.threshold import distribution
from mlflow_deploy_plugin.watch.drift.threshold.drawn import (
    FEWEST_WINDOWS,
    MOST_WINDOWS,
    IndependentRows,
    StationaryBootstrap,
    can_bootstrap,
    dependence_of,
)
from mlflow_deploy_plugin.watch.drift.threshold.null import (
    MIN_COMPARED_ROWS,
    ColumnGroup,
    Null,
    WindowNull,
    column_level,
    judged_figures,
    row_counts,
)
from mlflow_deploy_plugin.watch.drift.threshold.windows import Contiguous, Lagged, Overlapping
from mlflow_deploy_plugin.watch.result import Finding
from mlflow_deploy_plugin.watch.sequential.evidence import Outcome, alarm_key

State = Literal["drift", "no drift", "not judged"]
_WEEK = "7d"
_ACCEPTED = (
    "a user has accepted its shift as the new baseline, so that only later shifts are judged"
)
_NOTHING_JUDGED = Refused("distributions are not judged")
NULLS: Mapping[distribution.NullKind, type[Null]] = {
    null.kind: null
    for null in (Contiguous, Overlapping, StationaryBootstrap, Lagged, IndependentRows)
}
_MAX_CELLS = 20_000_000
"""The maximum number of histogram counts to compare in seconds: about sixty windows for
a thousand columns.
"""
_SIZE_STEP = 1.15
_PAIRS = 3.0
_MOST_PAIRS = 0.75
"""The number of compared rows is chosen so that 3 / (false-alarm rate) pairs, at most
3/4 of all, have enough rows.
"""
_NO_TIMES = (
    "the reference has no event times, so there are no windows to compare with; log the model "
    "with event_time= (the column or the values with the time of each row), or set "
    "independent_rows"
)
_METHOD = 11
"""A part of every cache key. Increment it if the computation of figures or nulls
changes.
"""
_MAX_FILES = 200
_MAX_BYTES = 256 * 1024 * 1024
_PLAIN = (
    "kind",
    "effective_n",
    "widening",
    "block_length",
    "persistence",
    "slowest_column",
    "length",
)
_ARRAYS = ("figures", "scales", "floors", "starts")


@dataclass(frozen=True)
class DriftVerdict:
    """The verdict on one window.

    Attributes:
        summary: the reason of a verdict without alarms.
        remark: the text after the worst alarm in the reason.
        findings: the outcome of every column, or the reason why the column was not
            judged; the worst finding is first.
        figures: metrics by name; metrics of columns are sorted by decreasing score.
        null: the kind of windows from which the threshold is computed; None if
            distributions are not judged.
        largest: the largest score of all columns, with the threshold; None if
            distributions are not judged.
    """

    state: State
    summary: str
    findings: tuple[Finding, ...]
    figures: Mapping[str, float]
    remark: str = ""
    notes: tuple[str, ...] = ()
    null: distribution.NullKind | None = None
    held_out: distribution.HoldOutAlarms | Refused = _NOTHING_JUDGED
    largest: Outcome | None = None

    @property
    def reason(self) -> str:
        alarms = [finding for finding in self.findings if finding.is_alarm]
        if not alarms:
            return self.summary
        return (
            column_findings.describe_worst([alarm.title for alarm in alarms], alarms[0].account)
            + self.remark
        )


def judge_profile(
    reference: DriftReference,
    window: Profile,
    start_us: int,
    spec: MonitorSpec,
    cache: Path | None,
    segments: Mapping[str, tuple[DriftReference, Profile]] | None = None,
    jump_rate: float | None = None,
    accepted: Collection[str] = (),
) -> DriftVerdict:
    """Judge the profile of a window.

    Args:
        start_us: seeds the choice of rows if the window has more rows than are
            compared.
        cache: stores the null for later windows of the same length and size; None for
            no cache.
        segments: the segments by name, such as `carrier=AA`. The segments and all rows
            together share one false-alarm rate.
        jump_rate: the false-alarm rate with a budget of alarms.
        accepted: the columns (`alarm_key`) whose distributions are not judged, because
            they have a new baseline.
    """
    schema = column_findings.schema_findings(reference, window, spec.columns)
    rows = {
        "rows": float(window.rows),
        "reference_rows": float(reference.pieces.total.rows),
    }
    all_rows = ""
    whole = _prepare_group(all_rows, reference, window, spec, accepted)
    if whole.reason:
        if window.rows < spec.min_rows:
            schema = []
        return _unjudged(rows, whole, schema)
    prepared = [whole]
    for segment, part in (segments or {}).items():
        prepared.append(_prepare_group(segment, *part, spec, accepted))
    groups = [each.group for each in prepared if not each.reason]
    null = null_distribution(groups, spec.false_alarm_rate, spec.independent_rows, cache)
    if isinstance(null, Refused):
        return _unjudged(rows, whole.without_null(null.reason), schema)
    others = [*schema, *chain.from_iterable(each.unjudged for each in prepared)]
    rate = jump_rate or spec.false_alarm_rate
    season_us = 1_000_000 * duration_seconds(spec.season or _WEEK)
    return _conclude(rows, groups, null, rate, start_us, season_us, others)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """The columns of a group that can be judged, or the reason why there are none.

    Attributes:
        unjudged: the findings about the other columns.
        reason: empty if some columns can be judged.
        state: the state of the verdict if no columns can be judged: "no drift" if a
            user has accepted the shifts of all of them.
    """

    group: ColumnGroup
    unjudged: Sequence[Finding]
    reason: str = ""
    state: State = "not judged"

    def without_null(self, reason: str) -> "_Prepared":
        """Return the group of all rows if the reference has no null for it."""
        added = column_findings.not_judged_findings(dict.fromkeys(self.group.columns, reason))
        return replace(self, unjudged=[*self.unjudged, *added], reason=reason)


def _prepare_group(
    segment: str,
    reference: DriftReference,
    window: Profile,
    spec: MonitorSpec,
    accepted: Collection[str],
) -> _Prepared:
    """Return the columns of a segment (empty: of all rows) that can be judged. Accepted
    columns are left out, and then also the projections, which include them.
    """
    names, unjudged = column_findings.judgeable_columns(reference, window, spec.columns, segment)
    compared = compared_rows(reference, window.rows, spec)
    group = ColumnGroup(segment, reference, window, names, compared)
    reason = too_few_rows(group, spec)
    excluded = [name for name in names if alarm_key(shown_name(name), segment) in accepted]
    if excluded:
        excluded = [name for name in names if name in excluded or name in PROJECTIONS]
    columns = tuple(name for name in names if name not in excluded)
    group = replace(group, columns=columns)
    state: State = "not judged"
    if not reason and not columns:
        reason = column_findings.describe_worst(without_projections(excluded), _ACCEPTED)
        state = "no drift"
    reasons = dict.fromkeys(excluded, _ACCEPTED)
    if reason:
        reasons |= dict.fromkeys(columns, reason)
    unjudged += column_findings.not_judged_findings(reasons, segment)
    return _Prepared(group, unjudged, reason, state)


def _unjudged(
    rows: Mapping[str, float],
    whole: _Prepared,
    schema: Sequence[Finding],
) -> DriftVerdict:
    """Return a verdict for distributions that are not judged: drift if a schema finding
    is an alarm.
    """
    findings = column_findings.sort_findings([*schema, *whole.unjudged])
    if not any(finding.is_alarm for finding in schema):
        return DriftVerdict(whole.state, whole.reason, findings, rows)
    remark = f"; distributions are not judged: {whole.reason}"
    return DriftVerdict("drift", whole.reason, findings, {**rows, "is_drift": 1.0}, remark)


def _conclude(
    rows: Mapping[str, float],
    groups: Sequence[ColumnGroup],
    null: distribution.NullDistribution,
    rate: float,
    start_us: int,
    season_us: int,
    others: Sequence[Finding],
) -> DriftVerdict:
    """Test the window with the null distribution, and return the verdict.

    Args:
        rows: the numbers of rows, which precede the figures.
        rate: the false-alarm rate of the test.
        others: the findings about columns whose distributions are not judged.
    """
    window = np.stack(
        [
            judged_figures(group, name, abs(start_us))
            for group, name in column_findings.columns_with_group(groups)
        ]
    )
    test = null.test(window, rate)
    checked, column_figures = column_findings.judge_columns(
        groups,
        null,
        window,
        test,
        start_us,
        season_us,
    )
    evidence = _evidence(null, rate, test.p_value)
    summary = f"no column differs from the reference more than its own windows do ({evidence})"
    if not test.is_drifted:  # All alarms are schema findings, which have no p-value.
        evidence = f"all other checks: {evidence}"
    is_drift = test.is_drifted or any(finding.is_alarm for finding in others)
    state: State = "drift" if is_drift else "no drift"
    return DriftVerdict(
        state=state,
        summary=summary,
        remark=f" ({evidence})",
        findings=column_findings.sort_findings([*others, *checked]),
        figures={
            **rows,
            "is_drift": float(is_drift),
            **_test_figures(null, test),
            "compared_rows": float(groups[0].compared),
            "false_alarm_rate": rate,
            **column_figures,
        },
        notes=tuple(_notes(null, rate, groups[0].reference.pieces)),
        null=null.kind,
        held_out=null.held_out,
        largest=Outcome("distribution", state, test.statistic, test.threshold),
    )


def _evidence(null: distribution.NullDistribution, rate: float, p_value: float) -> str:
    """Return the p-value and the windows that it is compared with, as a text."""
    evidence = f"p = {p_value:.3g} compared with {len(null.figures)} {NULLS[null.kind].description}"
    if null.independent_n < distribution.needed_windows(rate):
        evidence += _worth(null)
    return evidence


def _worth(null: distribution.NullDistribution) -> str:
    return f", worth {_few(null.independent_n)} independent windows"


def _test_figures(
    null: distribution.NullDistribution,
    test: distribution.TestResult,
) -> dict[str, float]:
    figures = {
        "p_value": test.p_value,
        "statistic": test.statistic,
        "threshold": test.threshold,
    }
    if not isinstance(null.held_out, Refused):
        figures["measured_false_alarm_rate"] = null.held_out.share
    figures["blocks"] = float(len(null.figures))
    figures["independent_blocks"] = null.independent_n
    return figures


def _notes(
    null: distribution.NullDistribution,
    rate: float,
    pieces: ReferencePieces,
) -> Iterator[str]:
    """Yield notes: the source of the threshold, then the causes of additional false
    alarms, with remedies.
    """
    kind = NULLS[null.kind]
    count = len(null.figures)
    independent = null.independent_n
    if rate < 1 / (count + 1):
        yield (
            f"jumps: nominal {rate:.2g} false alarms per window, extrapolated from {count} "
            f"{kind.description}"
        )
        return
    windows = f"{count} {kind.description}"
    if null.block_length:
        windows += f" in stretches of {null.block_length / 3600:.1f} h on average"
    if kind.is_of_steps or null.persistence > 1:
        windows += _worth(null)
    held_out = null.held_out
    if isinstance(held_out, Refused):
        measured = f"not measured: {held_out.reason}"
    else:
        measured = held_out.describe(rate)
    yield f"false-alarm rate: nominal {rate:g}, from {windows}; {measured}"
    advice = ""
    if kind.compares_with_whole:
        window = pieces.grid.length_us // 1_000_000
        lag = duration_text(window) if duration_seconds(_WEEK) % window else _WEEK
        advice = f"; with reference rolling:{lag} a window is compared with a recent window"
    if independent < distribution.needed_windows(rate):
        yield (
            f"more than {rate:.1%} of windows may be called drifted: the reference's windows are "
            f"correlated, most strongly in {null.slowest_column}, so {count} windows are worth "
            f"{_few(independent)} and support no rate below {1 / (1 + independent):.1%}{advice}"
        )
    if not isinstance(held_out, Refused) and held_out.is_beyond:
        yield (
            f"more than {rate:.1%} of windows are called drifted: {held_out.share:.1%} of the "
            f"reference's own, mostly because of {', '.join(held_out.columns)}; the probability "
            f"of this by chance is {held_out.p_value:.1g}{advice}"
        )


def _few(windows: float) -> str:
    """Return a number of windows, with two digits if it is small."""
    if windows >= 10:
        return f"{windows:.0f}"
    return f"{windows:.2g}"


def null_distribution(
    groups: Sequence[ColumnGroup],
    rate: float,
    independent_rows: bool,
    cache: Path | None,
) -> distribution.NullDistribution | Refused:
    """Return the distribution of the first null that supports the rate, from the cache
    if possible. The first group has all rows, the other groups are segments.
    """
    if cache is None:
        return _compute_null(groups, rate, independent_rows)
    files = FileCache(cache, ".npz", _MAX_FILES, _MAX_BYTES)
    path = files.path(_key_of(groups, rate, independent_rows))
    cached = _read_null(path)
    if cached is not None:
        return cached
    fresh = _compute_null(groups, rate, independent_rows)
    if not isinstance(fresh, Refused):
        with files.writing(path) as temporary:
            _write_null(fresh, temporary)
    return fresh


def _compute_null(
    groups: Sequence[ColumnGroup],
    rate: float,
    independent_rows: bool,
) -> distribution.NullDistribution | Refused:
    """Return the null distribution with the measured false alarms of its windows;
    Refused if the reference supports none with this rate.
    """
    # The levels of projections depend on the levels of the columns, and would hide
    # alarms of the columns.
    column_groups = [replace(group, columns=group.own_columns) for group in groups]
    null: Null | Refused
    if independent_rows:
        null = IndependentRows.cut(column_groups[0], rate)
    else:
        null = choose_null(column_groups[0], rate)
    if isinstance(null, Refused):
        return null
    persistence, slowest_column = null.persistence(column_groups[0])
    return replace(
        null.compare(groups),
        persistence=persistence,
        slowest_column=slowest_column,
        held_out=null.hold_out(column_groups, rate, persistence),
    )


def choose_null(group: ColumnGroup, rate: float) -> WindowNull | Refused:
    """Return the preferred null that supports the rate; Refused with the remedies if
    none does.
    """
    needed = distribution.needed_windows(rate)
    supported = []
    for null in _candidates(group, needed):
        if null.effective_n >= needed:
            return null
        supported.append(null.effective_n)
    pieces = group.reference.pieces
    length = duration_text(pieces.grid.length_us // 1_000_000)
    needs = f"a false-alarm rate of {rate:g} needs at least {needed}"
    most = int(max(supported))
    if pieces.grid.lag_windows:
        return Refused(
            f"{needs} pairs of windows that are {pieces.grid.lag_windows} windows of {length} "
            f"apart, and {_pairs_remedy(pieces.grid, rate, needed, most)}",
        )
    windows = int(Contiguous.cut(row_counts(pieces.windows), group.compared).effective_n)
    worth = f", worth {most} with overlapping and resampled windows" if most > windows else ""
    remedy = _supported_rate(most) or "no rate is supported: "
    return Refused(
        f"{needs} windows of {length} in the reference, and it has {windows}{worth}; "
        f"{remedy}judge shorter windows, or use a longer reference",
    )


def _supported_rate(windows: int) -> str:
    """Return the rate that some windows support, as a remedy; empty for no window."""
    if not windows:
        return ""
    smallest = distribution.show_rate(1 / (windows + 1))
    return f"the smallest supported rate is {smallest}: set this rate, "


def _pairs_remedy(grid: WindowGrid, rate: float, needed: int, most: int) -> str:
    """Return the number of pairs of windows, and the remedies."""
    ask = _supported_rate(most)
    if ask:
        ask += "or "
    if rate < SMALLEST_ROLLING_RATE:  # Too few pairs are kept, even with a longer log.
        return (
            f"at most {grid.max_pairs} are kept; {ask}set {SMALLEST_ROLLING_RATE:g} on a longer log"
        )
    if needed > grid.max_pairs:
        return f"with so many columns at most {grid.max_pairs} are kept; {ask}judge fewer columns"
    return f"the log has {most}; {ask}wait until the log is longer"


def _candidates(group: ColumnGroup, needed: int) -> Iterator[WindowNull]:
    """Yield the nulls that the reference allows, the preferred null first."""
    pieces = group.reference.pieces
    bins = group.reference.bins
    cells = max(sum(bins[name].size for name in group.columns), 1)
    most = max(needed, _MAX_CELLS // cells)
    window_rows = row_counts(pieces.windows)
    if pieces.grid.lag_windows:
        yield Lagged.cut(
            window_rows,
            *pieces.pairs(),
            group.compared,
            min(most, MAX_WINDOWS),
        )
        return
    yield Contiguous.cut(window_rows, group.compared, most)
    steps = row_counts(pieces.steps)
    length = pieces.grid.window_steps
    if length < 2 or not steps.any():
        return
    yield Overlapping.cut(steps, length, group.compared)
    if np.count_nonzero(steps) < FEWEST_WINDOWS * length or len(steps) > 2 * MOST_WINDOWS * length:
        return
    column_dependence = dependence_of(
        column_level(group, name, pieces.steps) for name in group.columns
    )
    if can_bootstrap(steps, length, column_dependence):
        yield StationaryBootstrap.cut(steps, length, column_dependence.block_length)


def _key_of(groups: Sequence[ColumnGroup], *parts: object) -> str:
    """Return the cache key, 40 hexadecimal digits, of the null distribution for the
    groups and other `parts`.
    """
    digest = hashlib.sha256(repr((_METHOD, *parts)).encode())
    for group in groups:
        pieces = group.reference.pieces
        for part in (
            (group.segment, group.compared, group.columns, group.reference.bins_key),
            (pieces.grid, pieces.window_starts_us, pieces.total.rows),
        ):
            digest.update(repr(part).encode())
        for profile in (*pieces.windows, *pieces.steps):
            digest.update(profile.rows.to_bytes(8, "little"))
        for name in group.columns:
            column = pieces.total.columns.get(name)
            if column is not None:
                digest.update(column.counts.tobytes())
    return digest.hexdigest()[:40]


def _write_null(null: distribution.NullDistribution, path: Path) -> None:
    about = {name: getattr(null, name) for name in _PLAIN}
    about["held_out"] = asdict(null.held_out)
    arrays = {name: getattr(null, name) for name in _ARRAYS}
    np.savez(
        path,
        about=np.array(json.dumps(about)),
        **arrays,
    )


def _read_null(path: Path) -> distribution.NullDistribution | None:
    """Return the stored null, and mark its file as used; None if the file does not
    exist or cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            about = json.loads(str(stored["about"]))
            os.utime(path)
            held_out = about.pop("held_out")
            kind = Refused if "reason" in held_out else distribution.HoldOutAlarms
            arrays = {name: stored[name] for name in _ARRAYS}
            return distribution.NullDistribution(**about, held_out=kind(**held_out), **arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


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
    if spec.independent_rows:
        if len(group.reference.sample) < MIN_COMPARED_ROWS:
            return (
                f"the reference has too few rows for samples; at least {MIN_COMPARED_ROWS} are "
                "needed"
            )
        return ""
    if pieces.grid.lag_windows and not len(pieces.pairs()[0]):
        return "the log is too short: no window of the reference has an earlier window at this lag"
    if not pieces.windows:
        if pieces.total.rows:
            return _NO_TIMES
        return "the reference has no rows"
    if group.compared < MIN_COMPARED_ROWS:
        return (
            f"the reference has {pieces.total.rows:,} rows in {len(pieces.windows)} windows of "
            f"this length, with a median of {group.compared}; at least {MIN_COMPARED_ROWS} are "
            "needed: judge longer windows (every)"
        )
    return ""


def compared_rows(reference: DriftReference, rows: int, spec: MonitorSpec) -> int:
    """Return the number of rows on both sides of a comparison: the window's rows, or
    the median of the reference windows if that is smaller. The window's rows are
    rounded down in steps of 15 %, so that windows of similar size share a null
    distribution. For `rolling:`, the pair's smaller window counts; fewer rows if many
    pairs are needed.
    """
    pieces = reference.pieces
    if pieces.grid.lag_windows:
        rows = min(rows, pieces.others.rows)
    if spec.independent_rows or not pieces.windows:
        return rows
    sizes = np.array([window.rows for window in pieces.windows])
    if pieces.grid.lag_windows:
        pairs = np.sort(np.minimum(*(sizes[side] for side in pieces.pairs())))
        most = max(
            math.ceil(_MOST_PAIRS * len(pairs)),
            distribution.needed_windows(spec.false_alarm_rate),
        )
        used_pairs = min(math.ceil(_PAIRS / spec.false_alarm_rate), most, len(pairs))
        middle = int(pairs[-used_pairs]) if used_pairs else 0
    else:
        middle = int(np.median(sizes))
    if rows >= middle:
        return middle
    if rows < MIN_COMPARED_ROWS:
        return rows
    size = float(MIN_COMPARED_ROWS)
    while int(size * _SIZE_STEP) <= rows:
        size *= _SIZE_STEP
    return int(size)
