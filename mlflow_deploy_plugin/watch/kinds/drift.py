"""Drift: does the window differ from the reference more than the reference's own
windows do, and do its columns meet the requirements? The verdict uses sketches of all
rows in the window; the report uses a bounded sample of rows. All columns and segments
share a false alarm rate (`drift/verdict.py`).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_deploy_plugin.core.column_names import OUTPUT_PREFIX
from mlflow_deploy_plugin.core.errors import (
    InvalidArtifact,
    InvalidConfig,
    NotFound,
    OnnxserveError,
    Refused,
)
from mlflow_deploy_plugin.core.extensions import PROFILES, find_entry
from mlflow_deploy_plugin.core.messages import did_you_mean, join_names
from mlflow_deploy_plugin.core.spec.monitors import Requirement
from mlflow_deploy_plugin.serve.inference_log.scan import is_answered_by
from mlflow_deploy_plugin.serve.inference_log.tables import concat_tables, with_both_names
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.serve.runtime.feeds import sample_positions
from mlflow_deploy_plugin.watch.drift.column_findings import not_judged_findings
from mlflow_deploy_plugin.watch.drift.effects import with_effects, without_harm
from mlflow_deploy_plugin.watch.drift.references.load import load_reference, load_segment_references
from mlflow_deploy_plugin.watch.drift.references.rows import SEED
from mlflow_deploy_plugin.watch.drift.references.windows import DriftReference
from mlflow_deploy_plugin.watch.drift.sketches.columns import (
    ColumnValues,
    pair_columns,
    read_columns,
    select_columns,
)
from mlflow_deploy_plugin.watch.drift.sketches.hourly import (
    SketchStore,
    profile_to_parquet,
    window_profile,
    window_versions,
)
from mlflow_deploy_plugin.watch.drift.sketches.relations import (
    PROJECTIONS,
    RELATIONS,
    correlation_change,
    without_projections,
)
from mlflow_deploy_plugin.watch.drift.sketches.sketch import (
    ColumnSketch,
    Profile,
    coalesce_batches,
    encode_columns,
    merge,
    sketch_groups,
)
from mlflow_deploy_plugin.watch.drift.value_changes import describe_repeats, describe_values
from mlflow_deploy_plugin.watch.drift.verdict import DriftVerdict, judge_profile
from mlflow_deploy_plugin.watch.history import NO_ROWS, usual_rows, with_history
from mlflow_deploy_plugin.watch.kinds.performance import accuracy_changes, describe_accuracy
from mlflow_deploy_plugin.watch.result import (
    UNDECIDED,
    Finding,
    ModelVersion,
    MonitorResult,
    ReportData,
    State,
    WindowRequest,
    describe_alarms,
    describe_change,
    other_alarms,
    shown_order,
)
from mlflow_deploy_plugin.watch.segments import (
    count_texts,
    is_segment,
    largest_values,
    segment_name,
    texts_of,
)
from mlflow_deploy_plugin.watch.sequential.budget import single_window_rate
from mlflow_deploy_plugin.watch.sequential.detector import known_limits
from mlflow_deploy_plugin.watch.sequential.evidence import ROWS_KEY, Evidence, LevelSeries
from mlflow_deploy_plugin.watch.sequential.levels import ROWS
from mlflow_deploy_plugin.watch.sequential.shifts import ShiftVerdict, judge_shifts
from mlflow_deploy_plugin.watch.statistics.intervals import (
    bonferroni_confidence,
    criterion_finding,
    criterion_state,
    wilson_interval,
)
from mlflow_deploy_plugin.watch.statistics.predictions import unreadable_notes, version_artifact

SKETCHES = "sketches.parquet"
READ_ROWS = 100_000
"""The number of rows above which the report shows only some hours of the window."""
_MOST_COLUMNS = 20
_MOST_CHARTS = 5
_STORED_LIMITS = 8
_SHOWN_ROWS = 5_000
_FULL_COLUMNS = 200
"""The number of columns above which fewer rows are read and shown."""
_DROPPED = "capture.drop excludes it from the log"
_MASKED = "capture.mask replaces its values in the log with hashes"
_KEY = "capture.keys lists it: it identifies rows and is not an input of the model"
_LEFT_OUT = "--exclude excludes it"
_NOTHING_LEFT = (
    "no column is left to judge: capture.drop, capture.mask or --exclude excludes every column"
)


def judge(request: WindowRequest) -> MonitorResult:
    """Judge the columns that the spec lists, by default all columns of the window:
    inputs and predictions. The relations between these columns and the requirements of
    the spec are also judged.
    """
    compared = compare_window(request)
    if isinstance(compared, MonitorResult):
        return compared
    verdict = compared.verdict(request.spec.columns)
    # The requirements are judged on all rows in the window. With `capture.fraction`,
    # each share has an interval for this number of independent draws.
    left_out = 1 - request.capture.fraction
    draws = math.inf
    if left_out and request.spec.requirements:
        # Whole requests are sampled, so a request is one draw. The divisor is the
        # finite population correction.
        batches = _version_rows(request, compared.version, ("_row", "_model", "_version"))
        requests = sum(
            int(np.count_nonzero(np.asarray(batch.column("_row")) == 0)) for batch in batches
        )
        draws = max(requests, 1) / left_out
    required: list[Finding] = []
    for requirement in request.spec.requirements:
        findings = _requirement_findings(compared, requirement, draws)
        required += with_history(request, findings)
    return compared.result(verdict, required)


@dataclass(frozen=True, eq=False)
class WindowComparison:
    """A window and its reference.

    Attributes:
        missing_reason: the reason why the reference is None.
        segments: the reference and the window of each segment, by name, such as
            `carrier=AA`.
        excluded: the columns that are not judged, with the reason: the log does not
            have their values, or the user has excluded them.
        segment_values: the column and the value of each segment, by name.
        rows: the rows of the window that all versions have answered; 0 if unknown.
    """

    request: WindowRequest
    version: ModelVersion
    reference: DriftReference | None
    missing_reason: str
    profile: Profile
    segments: Mapping[str, tuple[DriftReference, Profile]]
    notes: tuple[str, ...]
    excluded: Mapping[str, str]
    segment_values: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    rows: int = 0

    @property
    def names(self) -> list[str]:
        columns = _all_columns(self.profile, self.reference)
        return sorted({*without_projections(columns), *self.excluded})

    def verdict(self, columns: tuple[str, ...]) -> DriftVerdict:
        """Return the verdict on the `columns`, or on all columns if empty. Without a
        reference, no column is judged.
        """
        request = self.request
        absent = [name for name in columns if not select_columns(self.names, [name])]
        selected = tuple(
            part
            for part in (*select_columns(self.names, columns), *absent)
            if part not in self.excluded
        )
        if self.reference is None or not selected:
            reason = self.missing_reason or _NOTHING_LEFT
            findings = self._not_judged(
                {**dict.fromkeys(self.names, reason), **self.excluded},
                columns,
            )
            rows = self.rows or self.profile.rows
            return DriftVerdict(
                "not judged",
                reason,
                findings,
                {"reference_rows": 0.0},
                evidence=Evidence(levels={ROWS_KEY: math.log(max(rows, 1))}),
            )
        selected += tuple(name for name in PROJECTIONS if name in self.reference.bins)
        if not columns and ROWS not in self.excluded:
            selected += (ROWS,)
        request.progress(f"comparing {self.profile.rows:,} rows with the reference's own windows")
        stored = (window.evidence.limits for window in reversed(request.past))
        known_limits.update(next(filter(None, stored), {}))
        of_columns = replace(
            request,
            spec=request.spec.model_copy(update={"columns": selected}),
            past=request.past if request.follows_levels else (),
        )
        verdict = judge_profile(of_columns, self.reference, self.profile, self.segments, self.rows)
        findings = (*verdict.findings, *self._not_judged(self.excluded, columns))
        return replace(verdict, findings=tuple(with_history(request, findings)))

    def shifts(self, verdict: DriftVerdict) -> ShiftVerdict:
        """Return the lasting shifts of the judged columns until this window."""
        if verdict.course is None:
            return ShiftVerdict()
        drifted = dict.fromkeys(item.key for item in verdict.findings if item.is_alarm)
        return judge_shifts(verdict.course, drifted)

    @staticmethod
    def _not_judged(
        reasons: Mapping[str, str],
        columns: tuple[str, ...],
    ) -> tuple[Finding, ...]:
        """Return a finding with the reason for each of the `columns`, by default for
        all columns with a reason.
        """
        selected = select_columns(reasons, columns)
        return tuple(not_judged_findings({name: reasons[name] for name in selected}))

    def result(
        self,
        verdict: DriftVerdict,
        required: Sequence[Finding],
    ) -> MonitorResult:
        """Return the result with the findings of the requirements, the lasting shifts
        and the data for the report.
        """
        shifts = self.shifts(verdict)
        is_judged = verdict.state != "not judged" or shifts.findings or required
        sample = self._report_rows() if is_judged else None
        features: dict[str, Sequence[Mapping[str, ColumnValues]]] = {}
        findings, effect_notes = with_effects(
            self.request,
            self.version,
            sample,
            self._in_segment,
            [
                self._with_values(item, sample, features)
                for item in (*shifts.findings, *verdict.findings)
            ],
        )
        verdict = replace(verdict, findings=tuple(findings[len(shifts.findings) :]))
        findings = [*required, *findings]
        findings, estimate, estimated, harm_notes = self._with_harm(findings)
        state, reason = _conclude(required, verdict, findings)
        figures = {**verdict.figures, **shifts.figures, **estimated}
        if state in ("no drift", "changed") and "is_drift" in figures:
            figures["is_drift"] = 0.0
        outcomes = {"": verdict.largest._replace(state=state)} if verdict.largest else {}
        notes = [*self.notes]
        if self.reference is not None:
            notes += self.reference.notes
        notes += (*verdict.notes, *shifts.notes, *unreadable_notes(self.request.log))
        return self.request.result(
            state,
            "; ".join(filter(None, [estimate, reason])),
            self.version,
            self.profile.rows,
            model_id=self.reference.model_id if self.reference else "",
            findings=findings,
            figures=figures,
            notes=(*dict.fromkeys(notes), *effect_notes, *harm_notes),
            estimate=estimate,
            report=self._report_data(findings, shifts.charts, sample),
            evidence=replace(
                verdict.evidence,
                shifts=shifts.starts,
                outcomes=outcomes,
                limits=dict([*known_limits.items()][-_STORED_LIMITS:]),
            ),
        )

    def _with_harm(
        self,
        findings: Sequence[Finding],
    ) -> tuple[Sequence[Finding], str, Mapping[str, float], Sequence[str]]:
        """Return the findings, of which those without a sign of harm are `changed`; the
        change of the accuracy since the first alarm began in words and as figures, and
        a note if it is unknown.
        """
        starts = [item.since for item in findings if item.is_alarm and item.check != "criterion"]
        if not starts:
            return findings, "", {}, ()
        notes: tuple[str, ...] = ()
        try:
            since = datetime.fromisoformat(min(starts))
            accuracy = accuracy_changes(self.request.of_accuracy, since)
        except OnnxserveError as error:
            accuracy = Refused(error.message)
        if isinstance(accuracy, Refused):
            notes = (f"the accuracy is not estimated: {accuracy.reason}",)
            accuracy = {}
        if not self.request.spec.alerts_on_change:
            has_fallen = any(change.has_fallen for change in accuracy.values())
            findings = without_harm(findings, () if has_fallen else accuracy)
        figures = accuracy[""].figures if "" in accuracy else {}
        return findings, describe_accuracy(accuracy), figures, notes

    def _report_data(
        self,
        findings: Sequence[Finding],
        charts: Sequence[LevelSeries],
        sample: tuple[pa.Table, pa.Table] | None,
    ) -> ReportData:
        """Return the data for the report: the columns of the `sample` of the reference
        and the window (no column without a sample), the sketches and the charts of the
        findings that are shown first.
        """
        pairs = []
        if sample is not None:
            subjects = {finding.subject for finding in findings} - self.excluded.keys()
            reference, window = (read_columns(table)[0] for table in sample)
            pairs = [pair for pair in pair_columns(reference, window) if pair[0].name in subjects]
        profile = replace(
            self.profile,
            columns={
                name: self.profile.columns[name]
                for name in without_projections(self.profile.columns)
            },
        )
        shown = [finding.key for finding in sorted(findings, key=shown_order)]
        levels = [chart for chart in charts if chart.key in shown]
        levels.sort(key=lambda chart: shown.index(chart.key))
        del levels[_MOST_CHARTS:]
        if levels and self.request.accuracy:
            levels.append(self.request.accuracy)
        return ReportData(pairs, {SKETCHES: profile_to_parquet(profile)}, tuple(levels))

    def _with_values(
        self,
        finding: Finding,
        sample: tuple[pa.Table, pa.Table] | None,
        features: dict[str, Sequence[Mapping[str, ColumnValues]]],
    ) -> Finding:
        """Return the finding. The change of an alarm begins with that of the values or
        rows between the reference and the window of the `sample`, if it is simple. For
        relations, it is the correlation that changed most.

        `features` keeps the columns of the sample by segment, for the next findings.
        """
        is_accepted = finding.key in self.request.baseline
        if not finding.is_alarm or is_accepted or self.reference is None or sample is None:
            return finding
        rows = self._in_segment(sample, finding.segment)
        if finding.subject == RELATIONS:
            codes = (encode_columns(self.reference.bins, table) for table in rows)
            change = correlation_change(self.reference.bins, *codes)
            return replace(finding, change=change or finding.change)
        if finding.segment not in features:
            features[finding.segment] = [read_columns(table)[0] for table in rows]
        before, now = features[finding.segment]
        change = ""
        if finding.subject == ROWS:
            change = describe_repeats(before, now)
        elif finding.subject in before.keys() & now.keys():
            change = describe_values(before[finding.subject], now[finding.subject])
        return replace(finding, change="; ".join(filter(None, (change, finding.change))))

    def _in_segment(
        self,
        sample: tuple[pa.Table, pa.Table],
        segment: str,
    ) -> tuple[pa.Table, pa.Table]:
        """Return the rows of the segment in the sample; all rows if it is empty."""
        if not segment:
            return sample
        column, value = self.segment_values[segment]
        reference, window = (table.filter(is_segment(table, column, value)) for table in sample)
        return reference, window

    def _report_rows(self) -> tuple[pa.Table, pa.Table] | None:
        """Return about `_SHOWN_ROWS` rows of the reference and of the window, of a wide
        table fewer; None without a reference or without rows of the judged version.
        """
        request = self.request
        # Of a large window, read some hours, chosen at random with a fixed seed.
        window = request.window
        parts = [window]
        share = min(_FULL_COLUMNS / max(len(self.profile.columns), 1), 1.0)
        read_rows = READ_ROWS * share
        shown_rows = math.ceil(_SHOWN_ROWS * share)
        if self.profile.rows > read_rows:
            hours = request.log.hours(request.endpoint, window)
            read_hours = math.ceil(len(hours) * read_rows / self.profile.rows)
            picked = (hours[index] for index in sample_positions(len(hours), read_hours, SEED))
            parts = [
                Window(max(hour.start, window.start), min(hour.end, window.end)) for hour in picked
            ]
        tables = []
        for part in parts:
            rows = request.log.read(request.endpoint, part, math.ceil(shown_rows / len(parts)))
            if rows is not None and (rows.model, rows.version) == self.version:
                tables.append(rows.table)
        if not tables or self.reference is None:
            return None
        positions = sample_positions(len(self.reference.sample), shown_rows, SEED)
        return self.reference.sample.take(positions), concat_tables(tables)


def compare_window(request: WindowRequest) -> WindowComparison | MonitorResult:
    """Return the window and its reference as sketches, or the result of a window
    without rows. Raises InvalidConfig if the user has specified a column that neither
    the window nor the reference has.
    """
    versions = window_versions(request.log, request.endpoint, request.window)
    if not versions:
        return _judge_no_rows(request)
    version = next(iter(versions))
    request = _with_output_names(request, version)
    request.progress(f"reading the reference, {request.spec.reference}")
    reference = None
    missing_reason = ""
    try:
        reference = load_reference(request, *version)
    except (InvalidArtifact, InvalidConfig, NotFound) as error:
        missing_reason = error.message
    request.progress(f"reading {versions[version]:,} rows of the window")
    if reference is None:
        store = SketchStore(request.log, request.endpoint, {}, "none")
    else:
        store = SketchStore(request.log, request.endpoint, reference.bins, reference.bins_key)
    if request.engine == "local":
        profile = window_profile(store, *version, request.window)
    else:
        profiler = find_entry(PROFILES, request.engine, "engine", ["local"])
        profile = profiler(store, *version, request.window)
    columns = [*without_projections(_all_columns(profile, reference)), ROWS]
    for name in (*request.columns, *request.exclude):
        if not select_columns(columns, [name]):
            hint = did_you_mean(name, columns, f"the columns are {join_names(sorted(columns))}")
            raise InvalidConfig(f"neither the window nor the reference has a column {name!r}{hint}")
    excluded = dict.fromkeys(request.capture.drop, _DROPPED)
    excluded |= dict.fromkeys(request.capture.mask, _MASKED)
    excluded |= dict.fromkeys(request.capture.keys, _KEY)
    excluded = _with_parts(excluded, columns)
    segments = _find_segments(request, version, reference, excluded)
    # The first version is judged.
    notes = [
        f"{rows:,} rows in the window were answered by {' version '.join(other)} and are skipped"
        for other, rows in islice(versions.items(), 1, None)
    ]
    return WindowComparison(
        request,
        version,
        reference,
        missing_reason,
        profile=replace(
            profile,
            columns={
                name: sketch for name, sketch in profile.columns.items() if name not in excluded
            },
        ),
        segments=segments.sketches,
        notes=(*notes, *segments.notes),
        excluded=excluded | _with_parts(dict.fromkeys(request.exclude, _LEFT_OUT), columns),
        segment_values=segments.values,
        rows=sum(versions.values()),
    )


def _judge_no_rows(request: WindowRequest) -> MonitorResult:
    """Return the result of a window without rows: drift where rows are usual, if every
    file can be read.
    """
    log = request.log
    usual = Refused(NO_ROWS) if log.unreadable else usual_rows(request)
    if isinstance(usual, Refused):
        return request.result("not judged", usual.reason, notes=unreadable_notes(log))
    change = f"rows {usual:,.0f} → 0, fewer"
    findings = with_history(request, [Finding(ROWS, "rows", "drift", NO_ROWS, change=change)])
    return request.result("drift", describe_alarms(findings), findings=findings)


def _with_output_names(request: WindowRequest, version: ModelVersion) -> WindowRequest:
    """Return the request with both names of each output column that capture drops or
    masks.
    """
    capture = request.capture
    if not any(name.startswith(OUTPUT_PREFIX) for name in (*capture.drop, *capture.mask)):
        return request
    artifact = version_artifact(request, *version)
    both = {name: with_both_names(getattr(capture, name), artifact) for name in ("drop", "mask")}
    return replace(request, capture=capture.model_copy(update=both))


def _all_columns(profile: Profile, reference: DriftReference | None) -> set[str]:
    """Return the columns of the window and of the reference, including projections."""
    if reference is None:
        return {*profile.columns}
    return {*reference.bins, *profile.columns, *reference.pieces.total.columns}


def _with_parts(
    reasons: Mapping[str, str],
    columns: Collection[str],
) -> dict[str, str]:
    """Return the reasons for all columns, including the parts of columns with a
    reason.
    """
    by_column: dict[str, str] = {}
    for name, reason in reasons.items():
        by_column |= dict.fromkeys(select_columns(columns, [name]), reason)
    return by_column


@dataclass(frozen=True, eq=False)
class _Segments:
    """Segments by name, such as `carrier=AA`.

    Attributes:
        sketches: the reference and the window of each segment.
        values: the column and the value of each segment.
        notes: a text for each skipped column or value.
    """

    sketches: dict[str, tuple[DriftReference, Profile]] = field(default_factory=dict)
    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _find_segments(
    request: WindowRequest,
    version: ModelVersion,
    reference: DriftReference | None,
    excluded: Mapping[str, str],
) -> _Segments:
    """Return the largest segments for each column of `segment_by`. Without a reference,
    there are no segments.
    """
    segments = _Segments()
    if reference is None:
        return segments
    # If the reference is a part of the log, its masked values have the same hashes, so
    # the hashes can be segments.
    is_logged = request.spec.reference_kind in ("window", "rolling")
    hidden = {} if is_logged else excluded
    for column in request.spec.segment_by:
        if column in hidden:
            segments.notes.append(f"segments: {column}: {hidden[column]}")
            continue
        if texts_of(reference.sample, column) is None:
            segments.notes.append(
                f"segments: the reference has no column {column!r} that can define segments",
            )
            continue
        values, notes = _segment_values(request, version, column, reference)
        segments.notes.extend(notes)
        profiles = _profiles_by_value(request, version, column, values, reference)
        references = load_segment_references(request, *version, reference, column, values)
        for value, part, profile in zip(values, references, profiles, strict=True):
            name = segment_name(column, value)
            segments.sketches[name] = part, profile
            segments.values[name] = column, value
    return segments


def _segment_values(
    request: WindowRequest,
    version: ModelVersion,
    column: str,
    reference: DriftReference,
) -> tuple[list[str], list[str]]:
    """Return the most frequent values of a column, in the window or by the reference,
    and notes on skipped values.
    """
    counts = Counter[str]()
    for batch in _version_rows(request, version, (column, "_model", "_version")):
        texts = texts_of(batch, column)
        if texts is not None:
            counts.update(count_texts(texts))
    if not counts:
        return [], [f"segments: the window has no values of {column!r}"]
    # A segment whose rows are gone is judged by their number.
    texts = texts_of(reference.sample, column)
    windows = max(len(reference.pieces.windows), 1)
    usual = {} if texts is None else count_texts(texts)
    per_window = reference.pieces.total.rows / max(len(reference.sample), 1) / windows
    for value, rows in usual.items():
        if rows * per_window >= request.spec.min_rows:
            counts[value] = max(counts[value], round(rows * per_window))
    return largest_values(counts, column, request.spec.min_rows)


def _profiles_by_value(
    request: WindowRequest,
    version: ModelVersion,
    column: str,
    values: Sequence[str],
    reference: DriftReference,
) -> list[Profile]:
    """Return the sketches of the rows with each value of the column."""
    profiles_by_value: list[list[Profile]] = [[] for _ in values]
    value_set = pa.array(values, pa.string())
    for table in coalesce_batches(_version_rows(request, version, None)):
        texts = texts_of(table, column)
        if texts is None or not values:
            continue
        value_indices = pc.fill_null(pc.index_in(texts, value_set=value_set), -1)
        groups = np.asarray(value_indices).astype(np.int64)
        is_inside = groups >= 0
        profiles = sketch_groups(
            reference.bins,
            table.filter(pa.array(is_inside)),
            groups[is_inside],
            len(values),
        )
        for group, profile in enumerate(profiles):
            profiles_by_value[group].append(profile)
    return [merge(profiles) for profiles in profiles_by_value]


def _version_rows(
    request: WindowRequest,
    version: ModelVersion,
    columns: Sequence[str] | None,
) -> Iterator[pa.Table]:
    """Yield the window's rows that the version has answered, with these columns; with
    all columns if None.
    """
    for batch in request.log.batches(request.endpoint, request.window, columns):
        yield batch.filter(pa.array(is_answered_by(batch, *version)))


def _conclude(
    required: Sequence[Finding],
    verdict: DriftVerdict,
    findings: Sequence[Finding],
) -> tuple[State, str]:
    """Return the state and the reason of the result: of the worst of the open
    `findings`, otherwise of a requirement that cannot be judged, otherwise of the
    verdict.
    """
    alarms = sorted((item for item in findings if item.is_open), key=shown_order)
    if alarms:
        return alarms[0].state, describe_alarms(alarms)
    state: State = verdict.state
    reason = verdict.reason
    undecided = [item for item in required if item.state in UNDECIDED]
    if state == "drift":  # No alarm has an effect on the predictions.
        state = "no drift"
    elif undecided:
        first = min(undecided, key=lambda item: UNDECIDED.index(item.state))
        state = first.state
        reason = f"{first.subject}: {first.account}"
    elif state == "not judged" and required:
        state = "kept"
        reason = f"{required[0].subject}: {required[0].reason}"
    quiet = [item for item in findings if item.effect is not None]
    if quiet:
        reason = "; ".join([f"{quiet[0].title}: {quiet[0].reason}", *other_alarms(quiet)])
    return state, reason


def _requirement_findings(
    compared: WindowComparison,
    requirement: Requirement,
    effective_n: float,
) -> Iterator[Finding]:
    """Yield a finding for each column that is not shown to meet the requirement, or
    only the closest column if all meet it. `effective_n` is the number of independent
    draws that the rows are worth; infinity if the log has all rows.
    """
    argument = requirement.argument
    columns = [argument]
    if not argument:
        judged = [name for name in compared.names if name not in compared.excluded]
        columns = select_columns(judged, compared.request.spec.columns)
    refusal = ""
    rows = compared.profile.rows
    if rows < compared.request.spec.min_rows:
        refusal = f"the window has {rows:,} rows; min_rows is {compared.request.spec.min_rows:,}"
    elif requirement.name != "missing" and compared.reference is None:
        refusal = compared.missing_reason
    elif argument in compared.excluded:
        refusal = compared.excluded[argument]
    elif not columns or (argument and argument not in compared.names):
        refusal = (
            "neither the window nor the reference has the column; the columns are "
            f"{', '.join(compared.names[:20])}"
        )
    if refusal:
        yield criterion_finding(requirement, Refused(refusal), 1.0)
        return
    measured = _measure_shares(compared, requirement, columns, effective_n)
    broken = [item for item in measured if item.state != "kept"]
    more = ""
    if len(broken) > _MOST_COLUMNS:
        more = f", and the same for {len(broken) - 1} more columns"
    for item in broken[:_MOST_COLUMNS] or measured[:1]:
        text = item.reason
        if not broken and not argument:
            text = f"at most {text} ({item.subject})"
        yield replace(
            item,
            subject=f"{requirement.name}({item.subject})",
            reason=f"{text}, required is {requirement.text}{more}",
        )
        more = ""  # Only the first finding has this text.


def _measure_shares(
    compared: WindowComparison,
    requirement: Requirement,
    columns: Sequence[str],
    effective_n: float,
) -> list[Finding]:
    """Return a finding about the share of each column, the largest share first.
    `effective_n` is the number of independent draws that the rows are worth.
    """
    # All intervals of all requirements together have this confidence.
    rate = compared.request.spec.window_rate
    if compared.request.false_per_year:
        rate = single_window_rate(compared.request.spec, compared.request.false_per_year)
    confidence = bonferroni_confidence(rate, len(compared.request.spec.requirements) * len(columns))
    rows = compared.profile.rows
    measured = []
    for name in columns:
        share = _share(requirement.name, compared.profile, compared.profile.columns.get(name))
        interval = wilson_interval(name, share * rows, rows, confidence, effective_n)
        text = f"{share:.2%} of {rows:,} rows"
        if math.isfinite(effective_n):
            text += (
                f", a sample, {interval.low:.2%} to {interval.high:.2%} of all (Wilson, confidence "
                f"{confidence:.4g})"
            )
        # A change is known if the reference has rows of the column.
        change = ""
        if compared.reference is not None:
            others = compared.reference.pieces.others
            if others.rows and name in others.columns:
                before = _share(requirement.name, others, others.columns[name])
                direction = "more" if share > before else "fewer"
                change = describe_change(
                    f"{before:.1%}", "the reference", f"{share:.1%}", direction
                )
        measured.append(
            Finding(
                name,
                check="criterion",
                state=criterion_state(
                    requirement.holds(interval.low), requirement.holds(interval.high)
                ),
                reason=text,
                value=share,
                threshold=requirement.value,
                change=change,
                measure="share of rows",
            )
        )
    return sorted(measured, key=lambda item: (-(item.value or 0.0), item.subject))


def _share(name: str, profile: Profile, column: ColumnSketch | None) -> float:
    """Return the share of missing, unseen or out-of-range values. If a row lacks the
    column, its value is missing.
    """
    if column is None:
        return float(name == "missing")
    if name == "missing":
        return 1 - (column.rows - column.missing) / profile.rows
    if name == "unseen":
        return column.unseen / profile.rows
    return (column.below + column.above) / profile.rows
