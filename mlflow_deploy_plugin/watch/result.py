"""The request to judge a window, and the result, as plain values for all kinds of
monitors, reports and alerts.
"""

import calendar
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from pydantic_core import to_jsonable_python

from mlflow_deploy_plugin.core.logs import ProgressCallback
from mlflow_deploy_plugin.core.messages import join_names, one_line
from mlflow_deploy_plugin.core.registry.runs import LoggedRun
from mlflow_deploy_plugin.core.settings import Settings
from mlflow_deploy_plugin.core.spec.monitors import MonitorKind, MonitorSpec
from mlflow_deploy_plugin.core.spec.parts import CaptureSpec
from mlflow_deploy_plugin.serve.inference_log.labels import EndpointLabels
from mlflow_deploy_plugin.serve.inference_log.log_reader import InferenceLog, open_log
from mlflow_deploy_plugin.serve.inference_log.source_state import read_source_state
from mlflow_deploy_plugin.serve.inference_log.windows import Window
from mlflow_deploy_plugin.watch.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.watch.sequential.evidence import (
    Evidence,
    JudgedWindow,
    LevelSeries,
    Outcome,
    alarm_key,
)

State = Literal["drift", "changed", "no drift", "violated", "kept", "cannot tell", "not judged"]
"""`drift` uses all states, `performance` all but `changed` and `no drift`, and the
other kinds all but the first three. `changed` is a drift without a sign of harm.
"""
ModelVersion = tuple[str, str]
"""A model name and a version."""
Check = Literal[
    "distribution",
    "missing",
    "unseen",
    "type",
    "presence",
    "constant",
    "range",
    "rows",
    "criterion",
    "shift",
]
EXACT: tuple[Check, ...] = ("presence", "type", "constant")
"""Checks without the threshold that all other checks of columns share: any value above
0 is an alarm.
"""

SD_LEGEND = (
    "SD: standard deviations of the measure in the reference's own windows; most of these windows "
    "are within 2 SD of their mean, and a value beyond its threshold is an alarm"
)
_NOT_IN_DOCUMENT = {"report", "evidence", "log_rows", "run"}
_SHOWN_ORDER: tuple[State, ...] = (
    "violated",
    "drift",
    "changed",
    "cannot tell",
    "kept",
    "no drift",
    "not judged",
)
NO_EFFECT = "without an effect on the predictions"
_SMALLEST_EFFECT = 1e-6
_MOST_WORDS = 40
_DAY_US = 86_400_000_000
_WEEK_US = 7 * 86_400_000_000
_FEWEST_IN_PHASE = 3
NOT_LOGGED = LoggedRun("", "", "")
ALARMS = ("drift", "violated")
OPEN = (*ALARMS, "changed")
"""The states of findings that a user can accept, and that begin and end."""
UNDECIDED: tuple[State, ...] = ("cannot tell", "not judged")
"""The states that neither raise nor end an alarm, and that are skipped when consecutive
alarms are counted.
"""


def mark_of(state: str) -> Literal["alarm", "changed", "undecided", "fine"]:
    """Return the group of the state, which reports show by colour."""
    if state in ALARMS:
        return "alarm"
    if state == "changed":
        return "changed"
    if state in UNDECIDED:
        return "undecided"
    return "fine"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of a column, or of one criterion.

    Attributes:
        subject: the column, or the figure of the criterion (`accuracy`).
        value, threshold: in `unit`; None if the check was not judged. A value is also
            None if only its bounds are known.
        reason: an explanation of the state, or the reason why the check was not judged.
        segment: the segment, such as `carrier=AA`; empty for all rows.
        change: the change from the reference or earlier windows, such as `mean 3.2 →
            8.9, higher`; empty if unknown.
        since, since_end: the start and end of the first window of the alarm, in ISO
            8601; empty without an alarm. For a shift, this is the window in which the
            shift began by estimation, and `since_range` is the start and end of the 95
            % interval.
        in_a_row: the number of consecutive judged windows of the alarm, including this
            window; 0 without an alarm.
        measure: the measured figure of a column, such as `Wasserstein distance`; empty
            if the subject is the figure.
        unit: `SD`: the value is the difference of the measure from its mean in the
            reference's own windows, in standard deviations of these windows; `s` for
            seconds; empty for shares, counts and exact checks.
        effect: the mean change of the prediction that the drift of the column causes,
            for a lasting shift since its alarm; None if unknown.
        effect_size: the mean of the absolute change, with which `min_effect` is
            compared.
        effect_unit: the changed number, such as `prediction` or `probability of 1`.
        changed_classes: the share of rows whose class changes; None without classes.
        window_effect: the effect in this window, for a shift with earlier windows.
        is_quality: True if missing, new or mostly distant values of the column, or the
            number of rows, have drifted.
    """

    subject: str
    check: Check
    state: State
    reason: str = ""
    value: float | None = None
    threshold: float | None = None
    segment: str = ""
    change: str = ""
    since: str = ""
    since_end: str = ""
    in_a_row: int = 0
    since_range: tuple[str, str] | None = None
    measure: str = ""
    unit: str = ""
    effect: float | None = None
    effect_size: float | None = None
    effect_unit: str = ""
    changed_classes: float | None = None
    window_effect: float | None = None
    is_quality: bool = False

    @property
    def is_alarm(self) -> bool:
        return self.state in ALARMS

    @property
    def is_open(self) -> bool:
        return self.state in OPEN

    @property
    def has_no_effect(self) -> bool:
        """True for an open finding about a column that does not change the
        predictions.
        """
        return self.is_open and self.effect_size is not None and self.effect_size < _SMALLEST_EFFECT

    @property
    def key(self) -> str:
        return alarm_key(self.subject, self.segment)

    @property
    def title(self) -> str:
        """The subject for messages, such as `delay (carrier=AA)`."""
        if self.segment:
            return f"{self.subject} ({self.segment})"
        return self.subject

    @property
    def value_text(self) -> str:
        """Return the value with its unit, such as `6.13 SD`, with a sign for a shift;
        empty without a value to show.
        """
        return self._with_unit(self.value)

    @property
    def threshold_text(self) -> str:
        return self._with_unit(self.threshold)

    def _with_unit(self, number: float | None) -> str:
        """Return the number with its unit; empty without a number, and for exact
        checks.
        """
        if number is None or math.isnan(number) or self.check in EXACT:
            return ""
        sign = "+" if self.check == "shift" and number >= 0 else ""
        return f"{sign}{format_number(number)} {self.unit}".rstrip()

    @property
    def weight(self) -> float:
        """The ratio of value to threshold: 1 at the threshold, at most 10."""
        if self.value is None or not self.threshold:
            return 1.0
        ratio = abs(self.value / self.threshold)
        if not ratio:
            return 10.0
        return min(max(ratio, 1 / ratio), 10.0)

    @property
    def account(self) -> str:
        """Return the reason; for an alarm or an undecided check, the history precedes
        the reason.
        """
        is_shown = self.is_open or self.state in UNDECIDED
        if is_shown and self.history and self.reason:
            return f"{self.history}; {self.reason}"
        return self.reason

    @property
    def history(self) -> str:
        """Return the change, its effect and the alarm's start: `mean 3.2 → 8.9, higher;
        changes the prediction by +3.1 on average; drift since the window of 29 June …`.
        """
        since = ""
        if self.since:
            row = f", window {self.in_a_row} in a row" if self.in_a_row > 1 else ""
            since = f"{self.state} since the window of {self.since_text}{row}"
        return "; ".join(filter(None, [self.change, self.effect_text, since]))

    @property
    def effect_text(self) -> str:
        """Return the effect in words, such as `changes the prediction by +3.1 on
        average`; empty if unknown.
        """
        if self.effect is None or self.effect_size is None:
            return ""
        text = f"changes the {self.effect_unit} by {_signed(self.effect)} on average"
        if self.window_effect is not None:
            text += f" since the alarm, {_signed(self.window_effect)} in this window"
        if self.effect_size > 1.5 * abs(self.effect):
            text += f", by {format_number(self.effect_size, digits=2)} in either direction"
        if self.changed_classes is not None:
            text += f", and the class of {self.changed_classes:.1%} of the rows"
        return text

    @property
    def since_text(self) -> str:
        """Return the alarm's first window with its interval: `8 June 2013 (95 %
        interval: 5 to 10 June 2013, if it was a step)`.
        """
        if self.since_range is None:
            return self.first_window
        return f"{self.first_window} ({self.since_interval})"

    @property
    def first_window(self) -> str:
        """Return the alarm's first window in words, such as `8 June 2013`; empty
        without an alarm.
        """
        if not self.since:
            return ""
        start = datetime.fromisoformat(self.since)
        return describe_span(start, datetime.fromisoformat(self.since_end))

    @property
    def since_interval(self) -> str:
        """Return the interval of a shift's start in words, as `describe_interval` does;
        empty for other alarms.
        """
        if self.since_range is None:
            return ""
        return describe_interval(*map(datetime.fromisoformat, self.since_range))


def _signed(number: float) -> str:
    sign = "+" if number >= 0 else ""
    return sign + format_number(number, digits=2)


def describe_change(before: str, source: str, now: str, direction: str) -> str:
    """Return a change such as `3.2 (the reference) → 8.9, higher`. Values with the same
    text are unchanged.
    """
    if before == now:
        direction = "unchanged"
    return f"{before} ({source}) → {now}, {direction}"


def format_number(number: float, digits: int = 4) -> str:
    """Return a whole number with separators, and any other number with this number of
    significant digits, without an exponent below 1e15.
    """
    if abs(number) < 1e15 and float(number).is_integer():
        return f"{number:,.0f}"
    text = f"{number:.{digits}g}"
    rounded = float(text)
    return f"{rounded:,.0f}" if 10**digits <= abs(rounded) < 1e15 else text


def describe_alarms(alarms: Sequence[Finding]) -> str:
    """Return the first alarm with its effect and its start, and the names of the
    others, in at most `_MOST_WORDS` words.
    """
    worst = alarms[0]
    row = f", window {worst.in_a_row} in a row" if worst.in_a_row > 1 else ""
    since = f"since {worst.first_window}{row}" if worst.since else ""
    reason = worst.reason if worst.check == "criterion" or not worst.change else ""
    details = [worst.change, reason, worst.effect_text, since, *other_alarms(alarms)]
    words = f"{worst.title}: {'; '.join(filter(None, details))}".split()
    if len(words) > _MOST_WORDS:
        words[_MOST_WORDS - 1 :] = ["…"]
    return " ".join(words)


def other_alarms(alarms: Sequence[Finding]) -> list[str]:
    """Return the names of the subjects after the first one, those without an effect on
    the predictions in a text of their own.
    """
    others = [alarm for alarm in alarms if alarm.title != alarms[0].title]
    groups: dict[str, list[str]] = {"also": [], NO_EFFECT: []}
    for alarm in others:
        groups[NO_EFFECT if alarm.has_no_effect else "also"].append(alarm.title)
    return [
        f"{name} {join_names(dict.fromkeys(titles))}" for name, titles in groups.items() if titles
    ]


def shown_order(finding: Finding) -> tuple[int, bool, float, float]:
    """Return the key by which findings are sorted: the worst state first, and of the
    alarms the largest effect on the predictions.
    """
    order = _SHOWN_ORDER.index(finding.state)
    if not finding.is_open:
        return order, False, 0.0, 0.0
    return order, finding.has_no_effect, -(finding.effect_size or 0.0), -finding.weight


def describe_interval(earliest: datetime, latest: datetime) -> str:
    """Return the interval of a shift's start in words, such as `95 % interval: 5 to 10
    June 2013, if it was a step`. It contains the starts of half of all slopes.
    """
    return f"95 % interval: {describe_span(earliest, latest)}, if it was a step"


def describe_span(start: datetime, end: datetime) -> str:
    """Return the interval [start, end) in words and in UTC: `29 to 31 August 2026` for
    whole days, otherwise `31 August 2026, 14:00 to 15:00 UTC`.
    """
    first = start.astimezone(UTC)
    last = end.astimezone(UTC)
    is_of_days = first.time() == last.time() == time() and first < last
    if is_of_days:
        last -= timedelta(days=1)
    if first.date() == last.date():
        day = _day(first)
        if is_of_days:
            return day
        return f"{day}, {first:%H:%M} to {last:%H:%M} UTC"
    if not is_of_days:
        return f"{_day(first)} {first:%H:%M} to {_day(last)} {last:%H:%M} UTC"
    if first.year != last.year:
        return f"{_day(first)} to {_day(last)}"
    month = "" if first.month == last.month else f" {first:%B}"
    return f"{first.day}{month} to {_day(last)}"


def _day(moment: datetime) -> str:
    return f"{moment.day} {moment:%B %Y}"


def same_phase(
    start_us: int,
    length_us: int,
    starts_us: Sequence[int],
    season_us: int = _WEEK_US,
) -> tuple[list[int], str]:
    """Return the indices of the windows that begin at `starts_us` in the same phase of
    the season as the window of this start and length, and their name, such as
    `Mondays`. Times are in microseconds since 1970. Both values are empty if fewer than
    three windows are in the phase, or if the season is not longer than a window.
    """
    in_phase = [
        index for index, other in enumerate(starts_us) if (start_us - other) % season_us == 0
    ]
    if len(in_phase) < _FEWEST_IN_PHASE or season_us <= length_us:
        return [], ""
    if (season_us, length_us) != (_WEEK_US, _DAY_US):
        return in_phase, "windows of the same phase"
    weekday = calendar.day_name[datetime.fromtimestamp(start_us // 1_000_000, UTC).weekday()]
    return in_phase, f"{weekday}s"


@dataclass(frozen=True, eq=False)
class ReportData:
    """Additional data for the report.

    Attributes:
        pairs: per column, a bounded, seeded sample of the reference and of the window,
            [N] and [M] values with the same N and M for all columns.
        artifacts: additional files by name.
        levels: the charts over the windows: at most five columns with an alarm, the
            worst first, then the accuracy.
    """

    pairs: Sequence[tuple[ColumnValues, ColumnValues]] = ()
    artifacts: Mapping[str, bytes] = field(default_factory=dict)
    levels: Sequence[LevelSeries] = ()


@dataclass(frozen=True)
class MonitorResult:
    """The result of a monitor for one window.

    Attributes:
        revision: 1 for the first result; late rows lead to the next revision.
        findings: the worst finding first. Every column has a finding; for an unjudged
            column, it has the reason.
        estimate: the accuracy compared with that before the change, in words; empty if
            unknown.
        tried: settings overridden for one run, such as `min_rows=50`; such a result is
            not a verdict of the monitor.
        endpoint_created: the creation time, because an earlier endpoint may have the
            same name; empty if unknown.
        report: the data for the report; empty in a logged result.
        evidence: the figures and outcomes that the store keeps for later judgements.
        log_rows: the rows of the window in the log before the judgement.
        run: the run in MLflow; empty until the result is logged.
    """

    endpoint: str
    monitor: str
    kind: MonitorKind
    model: str
    version: str
    model_id: str
    window: Window
    revision: int
    state: State
    reason: str
    rows: int
    findings: tuple[Finding, ...] = ()
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    estimate: str = ""
    tried: str = ""
    endpoint_created: str = ""
    report: ReportData = field(default_factory=ReportData, compare=False, repr=False)
    evidence: Evidence = field(default_factory=Evidence, compare=False, repr=False)
    log_rows: int = 0
    run: LoggedRun = NOT_LOGGED

    @property
    def is_alarm(self) -> bool:
        return self.state in ALARMS

    @property
    def accept_command(self) -> str:
        """The command that accepts the first column with an open finding; empty without
        a budget of alarms, or if no such column can have a baseline.
        """
        if self.kind != "drift" or "false_alarms_per_year" not in self.figures:
            return ""
        with_levels = {series.column for series in self.evidence.levels}
        for finding in self.findings:
            if finding.is_open and finding.key in with_levels:
                names = map(shlex.quote, (self.endpoint, self.monitor, finding.key))
                return "onnxserve monitor accept {} {} --column {}".format(*names)
        return ""


def to_document(result: MonitorResult) -> dict[str, object]:
    """Return the result in the format of `verdict.json` and the command line. NaN and
    infinity become null.
    """
    document: dict[str, object] = to_jsonable_python(
        result, exclude=_NOT_IN_DOCUMENT, inf_nan_mode="null"
    )
    document["window"] = {
        "start": result.window.start.isoformat(),
        "end": result.window.end.isoformat(),
    }
    return document


def no_progress(line: str) -> None:
    """Ignore the line. Scheduled runs do not show progress."""


@dataclass(frozen=True)
class WindowRequest:
    """A window to judge. The request can be pickled until its log has been read.

    Attributes:
        engine: the engine that computes the sketches: this process or Spark. Both give
            the same numbers.
        tried, endpoint_created: as in `MonitorResult`.
        columns, exclude: the columns that the user has included or excluded.
        progress: a function that receives a line before each step that takes seconds.
        rows_since: as in `core.store.store.Endpoint`; rows of a deleted endpoint of the
            same name are not read.
        false_per_year: the monitor's share of the endpoint's budget of alarms; None
            without a budget.
        has_default_budget: True if the endpoint does not set the budget, which then
            applies only if the reference is long enough.
        min_effect: the effect of a column on the predictions below which its drift is
            not an alarm; None if every drift is an alarm.
        past: the earlier windows of the monitor in their last revision, oldest first.
        baseline: the columns whose shift a user has accepted (`alarm_key`), each with
            the start of the new baseline.
        accuracy: a metric of the model over the same windows, from a monitor of kind
            performance; None if unknown.
        performance: the spec of the endpoint's first monitor of kind performance; None
            without one.
        follows_levels: False for a window outside the monitor's schedule with a budget.
            The levels of such a window are not compared with those of the past windows,
            because that would raise more alarms than the budget permits.
    """

    endpoint: str
    monitor: str
    spec: MonitorSpec
    window: Window
    revision: int
    settings: Settings
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    notes: tuple[str, ...] = ()
    engine: str = "local"
    tried: str = ""
    endpoint_created: str = ""
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    progress: ProgressCallback = field(default=no_progress, compare=False)
    rows_since: datetime | None = None
    false_per_year: float | None = None
    has_default_budget: bool = False
    min_effect: float | None = None
    past: Sequence[JudgedWindow] = field(default=(), repr=False)
    baseline: Mapping[str, datetime] = field(default_factory=dict)
    accuracy: LevelSeries | None = field(default=None, repr=False)
    performance: MonitorSpec | None = None
    follows_levels: bool = True

    @cached_property
    def log(self) -> InferenceLog:
        """The inference log from the settings. The log records the files that could not
        be read.
        """
        return open_log(self.settings.inference_log, self.rows_since)

    @cached_property
    def source_columns(self) -> tuple[str, ...]:
        """The columns that the source of an observed endpoint has had so far; empty for
        other endpoints.
        """
        return read_source_state(self.log.location, self.endpoint).columns

    @cached_property
    def labels(self) -> EndpointLabels:
        return self.log.labels(self.endpoint)

    @property
    def of_accuracy(self) -> "WindowRequest":
        """The request for the accuracy of the window, whose labels are those of the
        endpoint's performance monitor.
        """
        fields = self.spec.model_dump(include={"every", "min_rows", "segment_by"})
        fields["require"] = ("accuracy>=0",)
        spec = self.performance or MonitorSpec(kind="performance", require=("accuracy>=0",))
        return replace(self, spec=spec.model_copy(update=fields))

    @property
    def requirement_rate(self) -> float:
        """The rate of false violations per window: the window's share of a budget, and
        at most the spec's rate.
        """
        rate = self.spec.window_rate
        if self.false_per_year is None:
            return rate
        return min(rate, self.false_per_year / self.spec.windows_per_year)

    def result(
        self,
        state: State,
        reason: str,
        version: ModelVersion = ("", ""),
        rows: int = 0,
        *,
        model_id: str = "",
        findings: Iterable[Finding] = (),
        figures: Mapping[str, float] = MappingProxyType({}),
        notes: Iterable[str] = (),
        estimate: str = "",
        report: ReportData | None = None,
        evidence: Evidence | None = None,
    ) -> MonitorResult:
        """Return a result with sorted findings. The rows are added to the figures, and
        the alarms and outcomes of the findings to the evidence.
        """
        ordered = tuple(sorted(findings, key=shown_order))
        return MonitorResult(
            endpoint=self.endpoint,
            monitor=self.monitor,
            kind=self.spec.kind,
            model=version[0],
            version=version[1],
            model_id=model_id,
            window=self.window,
            revision=self.revision,
            state=state,
            reason=one_line(reason),
            rows=rows,
            findings=ordered,
            figures={"rows": float(rows), **figures},
            notes=tuple(map(one_line, (*self.notes, *notes))),
            estimate=one_line(estimate),
            tried=self.tried,
            endpoint_created=self.endpoint_created,
            report=report or ReportData(),
            evidence=with_outcomes(evidence or Evidence(), ordered),
        )


def with_outcomes(evidence: Evidence, findings: Iterable[Finding]) -> Evidence:
    """Return the evidence with the open findings and the effects, and with the
    first outcome of each column and criterion. Shifts have their own evidence.
    """
    alarms: dict[str, None] = {}
    effects: dict[str, float] = {}
    outcomes: dict[str, Outcome] = {}
    for finding in findings:
        if finding.is_open:
            alarms[finding.key] = None
        effect = finding.effect if finding.window_effect is None else finding.window_effect
        if effect is not None:
            effects[finding.key] = effect
        has_outcome = finding.state != "not judged" or finding.value is not None
        if has_outcome and finding.check != "shift":
            outcome = Outcome(finding.check, finding.state, finding.value, finding.threshold)
            outcomes.setdefault(finding.key, outcome)
    return replace(
        evidence,
        alarms=tuple(alarms),
        effects=effects,
        outcomes={**outcomes, **evidence.outcomes},
    )
