"""The request to judge one window, and its result: plain values that kinds of monitor, reports and alerts share."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from mlflow_deploy_plugin.inference_log import InferenceLog, Window, open_log
from mlflow_deploy_plugin.inference_log.labels import EndpointLabels
from mlflow_deploy_plugin.logs import ProgressCallback
from mlflow_deploy_plugin.monitoring.drift.sketches.columns import ColumnValues
from mlflow_deploy_plugin.settings import Settings
from mlflow_deploy_plugin.spec import CaptureSpec, MonitorKind, MonitorSpec

Engine = Literal["local", "spark"]
State = Literal["drift", "no drift", "violated", "kept", "cannot tell", "not judged"]
"""Drift kinds have the first two, kinds with `require` the next three, data_quality all; every kind has the last."""
ModelVersion = tuple[str, str]
"""Model and version."""
Check = Literal["distribution", "missing", "unseen", "type", "presence", "constant", "range", "criterion"]
EXACT: tuple[Check, ...] = ("presence", "type", "constant")
"""Checks without a threshold that others share: anything above 0 is an alarm."""

_SHOWN_ORDER: tuple[State, ...] = ("violated", "drift", "cannot tell", "kept", "no drift", "not judged")
ALARMS = ("drift", "violated")
UNDECIDED = ("cannot tell", "not judged")
"""A window in one of these states neither raises nor ends an alarm, and is skipped in a row of alarms."""


def mark_of(state: str) -> Literal["alarm", "undecided", "fine"]:
    return "alarm" if state in ALARMS else "undecided" if state in UNDECIDED else "fine"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check of a column, or of one criterion.

    Attributes:
        subject: the column, or the figure of the criterion (`accuracy`).
        value, threshold: in the check's own units; None if it was not judged.
        reason: a sentence that explains the state, or why it was not judged.
        segment: its rows, such as `carrier=AA`; empty: all.
        change: from the reference (of a column) or the window before: `mean 3.2 → 8.9, higher`; empty if not known.
        since: the start of the first window of the alarm, in ISO 8601; empty without an alarm.
        in_a_row: the number of judged windows of the alarm, with this one; 0 without an alarm.
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
    in_a_row: int = 0

    @property
    def is_alarm(self) -> bool:
        return self.state in ALARMS

    @property
    def weight(self) -> float:
        """The factor by which it is beyond its threshold: 1 at the threshold, and 10 at most."""
        if self.value is None or not self.threshold:
            return 1.0
        ratio = abs(self.value / self.threshold)
        return min(max(ratio, 1 / ratio if ratio else 10.0), 10.0)

    @property
    def history(self) -> str:
        """Return `mean 3.2 → 8.9, higher; drift since 2013-06-29, window 3 in a row`, as far as it is known."""
        if not self.since:
            return self.change
        row = f", window {self.in_a_row} in a row" if self.in_a_row > 1 else ""
        time = format_time(self.since)
        since = f"{self.state} since {time}{' UTC' if ' ' in time else ''}{row}"
        return f"{self.change}; {since}" if self.change else since


def format_time(iso: str) -> str:
    """Return `2013-06-29`, or `2013-06-29 14:00`: the time in UTC, to the minute."""
    return iso[:16].replace("T", " ").removesuffix(" 00:00")


@dataclass(frozen=True, eq=False)
class ReportData:
    """Data that a report shows beside the result: `pairs` is, per column, a bounded, seeded sample of the reference and
    the window ([N] and [M] values for all pairs); `artifacts` are further files of the run by name."""

    pairs: Sequence[tuple[ColumnValues, ColumnValues]] = ()
    artifacts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class MonitorResult:
    """The result of a monitor for one window.

    Attributes:
        revision: 1 at first; rows that came later make the next one.
        findings: the worst first. Every column is among them, with its outcome or why it was not judged.
        tried: bounds that were tried once, as `min_rows=50`; such a result is no verdict of the monitor.
        endpoint_created: distinguishes the endpoint from an earlier one of its name; empty if not known.
        report: the data of the report; a result that was logged has none.
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
    tried: str = ""
    endpoint_created: str = ""
    report: ReportData = field(default_factory=ReportData, compare=False, repr=False)

    @property
    def is_alarm(self) -> bool:
        return self.state in ALARMS


def to_document(result: MonitorResult) -> dict[str, object]:
    """Return the result as `verdict.json` and the command line have it; a number that is not finite is null."""
    window = {"start": result.window.start.isoformat(), "end": result.window.end.isoformat()}
    document = {**asdict(replace(result, report=ReportData())), "window": window}
    return {name: _plain(value) for name, value in document.items() if name != "report"}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value


def no_progress(line: str) -> None:
    """Ignore the line: nobody watches the windows of a schedule."""


@dataclass(frozen=True)
class WindowRequest:
    """One window to judge. It can be pickled until its log has been read.

    Attributes:
        engine: the engine that sketches the rows: this process, or Spark, with the same numbers.
        tried, endpoint_created: as in `MonitorResult`.
        columns, exclude: columns that a person has specified: only these are judged, or all but these.
        progress: gets a line before each step that takes seconds.
        rows_since: as in `store.Endpoint`; rows of a deleted endpoint of the name are not read.
    """

    endpoint: str
    monitor: str
    spec: MonitorSpec
    window: Window
    revision: int
    settings: Settings
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    notes: tuple[str, ...] = ()
    engine: Engine = "local"
    tried: str = ""
    endpoint_created: str = ""
    columns: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    progress: ProgressCallback = field(default=no_progress, compare=False)
    rows_since: datetime | None = None

    @cached_property
    def log(self) -> InferenceLog:
        """The inference log of the settings. It remembers which files could not be read for this window."""
        return open_log(self.settings.inference_log, self.rows_since)

    @cached_property
    def labels(self) -> EndpointLabels:
        return self.log.labels(self.endpoint)

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
        report: ReportData | None = None,
    ) -> MonitorResult:
        """Return the result. Its figures are the number of rows and `figures`; findings are sorted by their state."""
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
            reason=reason,
            rows=rows,
            findings=tuple(sorted(findings, key=lambda one: _SHOWN_ORDER.index(one.state))),
            figures={"rows": float(rows), **figures},
            notes=(*self.notes, *notes),
            tried=self.tried,
            endpoint_created=self.endpoint_created,
            report=report or ReportData(),
        )
